"""Contrastive pre-training: the loss, the momentum encoder, and the metrics of an evaluation."""

import math

import pytest
import torch
from torch.nn import functional as F

from rcg.config import ContrastiveTrain
from rcg.core.checkpoint import Facts
from rcg.core.errors import UserError
from rcg.data.datasets.digits import DigitsConfig
from rcg.data.images import Images, load_images
from rcg.encoders.moco_v3 import MoCoV3, MoCoV3Config
from rcg.encoders.timm_model import TimmModel, TimmModelConfig
from rcg.training.tasks.encoder import EncoderTask, MoCo, info_nce

TINY = {"arch": "resnet18", "width": 4, "depth": 1, "projector_hidden": 8, "projector_dim": 6}


def test_the_loss_is_the_cross_entropy_of_finding_ones_own_key():
    q, k = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    similarity = F.normalize(q) @ F.normalize(k).T / 0.3
    expected = -torch.stack([similarity[i, i] - similarity[i].logsumexp(0) for i in range(5)]).mean() * 2 * 0.3
    torch.testing.assert_close(info_nce(q, k, 0.3), expected)


def test_the_loss_of_orthogonal_pairs_has_its_closed_form():
    axes = torch.eye(8)
    expected = 2 * 0.2 * math.log(1 + 7 * math.exp(-1 / 0.2))
    assert info_nce(axes, axes, 0.2).item() == pytest.approx(expected, rel=1e-5)


def moco():
    torch.manual_seed(0)
    return MoCo(MoCoV3(MoCoV3Config(**TINY), 16), ContrastiveTrain(predictor=8), 6)


def test_gradients_reach_encoder_and_predictor_and_not_the_momentum_encoder():
    m = moco()
    m(torch.rand(6, 2, 3, 16, 16))["infonce"].backward()
    assert all(p.grad is None for p in m.momentum.parameters())
    trained = [p for p in m.base.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in [*trained, *m.predictor.parameters()])


def test_both_views_play_both_parts():
    m, views = moco(), torch.rand(6, 2, 3, 16, 16)
    m.eval()
    torch.testing.assert_close(m(views)["infonce"], m(views.flip(1))["infonce"])


def test_the_momentum_encoder_follows():
    m = moco()
    with torch.no_grad():
        for p in m.base.parameters():
            p.add_(1.0)
    before = [p.clone() for p in m.momentum.parameters()]
    m.follow(0.9)
    for old, new, target in zip(before, m.momentum.parameters(), m.base.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * target)


@torch.no_grad()
def test_an_evaluation_works_with_labels_and_without():
    train, validation = load_images(DigitsConfig(limit=120))
    task = EncoderTask(
        MoCoV3(MoCoV3Config(**TINY), 16), train, validation, ContrastiveTrain(steps=1, predictor=8), Facts()
    )
    report = task.evaluate({"encoder": task.modules["encoder"].eval()}, 0)
    assert set(report.metrics) == {"alignment", "uniformity", "effective_rank", "knn_accuracy"}
    assert report.images["views"].shape[0] == 3
    train.source.labels = validation.source.labels = None
    task.train, task.validation = (Images(split.source, split.indices, split.config) for split in (train, validation))
    assert "knn_accuracy" not in task.evaluate({"encoder": task.modules["encoder"].eval()}, 0).metrics


def test_an_encoder_without_a_projector_cannot_be_trained():
    train, validation = load_images(DigitsConfig(limit=20))
    frozen = TimmModel(TimmModelConfig(model="resnet10t", weights="none", input_size=32), 16)
    with pytest.raises(UserError, match="the encoder timm_model cannot be pre-trained"):
        EncoderTask(frozen, train, validation, ContrastiveTrain(), Facts())


@pytest.mark.parametrize("norm", [True, False])
def test_the_predictor_ends_with_a_norm_for_vits_and_without_for_resnets_as_published(norm):
    m = MoCo(MoCoV3(MoCoV3Config(**TINY), 16), ContrastiveTrain(predictor=8, predictor_norm=norm), 6)
    assert isinstance(m.predictor[-1], torch.nn.BatchNorm1d) == norm
    assert m(torch.rand(4, 2, 3, 16, 16))["infonce"].isfinite()
