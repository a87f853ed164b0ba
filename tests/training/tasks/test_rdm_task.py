"""The task of the RDM: the metrics that compare generated with real representations."""

import math

import pytest
import torch

from rcg.core.checkpoint import Facts
from rcg.core.contracts import Space
from rcg.data.views import ShardedViews
from rcg.diffusion.model import build
from rcg.diffusion.networks.rep_mlp import RepMLP, RepMLPConfig
from rcg.training.tasks.rdm import RDMTask
from rcg.visual.curves import quality

ORDER = torch.randperm(400, generator=torch.Generator().manual_seed(0))
"""In which training representations are compared."""


def draw(count, seed):
    return torch.randn(count, 1, 5, generator=torch.Generator().manual_seed(seed)) + 2


def task(cond=None, conditions=None):
    config = RepMLPConfig(
        width=16,
        depth=1,
        condition="none" if cond is None else "class" if cond.vocab else "vector",
        vectors="vectors.safetensors" if cond is not None and not cond.vocab else None,
        sampler={"name": "ddim", "steps": 3},
    )
    model = build(config, RepMLP, Space((5,)), cond)
    z = torch.cat([draw(400, 0), draw(400, 1)], dim=1)
    validation_labels = conditions[:200] if cond is not None and cond.vocab else None
    validation_z = ShardedViews([draw(200, 2)])
    conditions = None if conditions is None else ShardedViews([conditions[:, None]])
    return RDMTask(model, ShardedViews([z]), validation_z, conditions, validation_labels, Facts())


def evaluated(monkeypatch, generate):
    t = task()
    monkeypatch.setattr(t.modules["rdm"], "sample", lambda cond, noise, **_: generate(t))
    return t.evaluate(t.modules, 0).metrics


def test_a_model_that_draws_from_the_data_reaches_the_reference(monkeypatch):
    metrics = evaluated(monkeypatch, lambda t: draw(200, 3)[:, 0])
    assert metrics["rep_fd"] == pytest.approx(metrics["rep_fd_reference"], rel=0.8)
    assert metrics["rep_precision"] > 0.8
    assert metrics["rep_recall"] > 0.8
    assert metrics["rep_novelty"] == pytest.approx(1, abs=0.15)


def test_a_model_that_memorized_the_training_set_is_not_novel(monkeypatch):
    metrics = evaluated(monkeypatch, lambda t: t.train[:200] + 1e-4)
    assert metrics["rep_fd"] == pytest.approx(metrics["rep_fd_reference"], rel=0.05)
    assert metrics["rep_novelty"] < 0.1


def test_a_model_of_one_mode_is_precise_and_covers_little(monkeypatch):
    metrics = evaluated(monkeypatch, lambda t: 0.1 * draw(200, 3)[:, 0] + 1.8)
    assert metrics["rep_precision"] > 0.9
    assert metrics["rep_recall"] < 0.2


def test_rep_fd_sees_a_shift(monkeypatch):
    assert evaluated(monkeypatch, lambda t: t.validation + 3)["rep_fd"] == pytest.approx(5 * 9, rel=1e-3)


def test_an_untrained_model_is_far_from_the_reference():
    metrics = task().evaluate(task().modules, 0).metrics
    assert metrics["rep_fd"] > 10 * metrics["rep_fd_reference"]


def test_a_class_conditional_rdm_is_evaluated_with_the_labels_of_the_data():
    labels = torch.arange(400) % 4
    t = task(Space((), vocab=4), labels)
    asked = []
    t.modules["rdm"].network.register_forward_pre_hook(lambda module, args: asked.append(args[2]))
    t.evaluate(t.modules, 0)
    assert torch.equal(asked[0], labels[ORDER[:200]])


def test_an_rdm_of_vectors_is_trained_and_evaluated_with_those_of_the_images():
    vectors = torch.randn(400, 3)
    t = task(Space((3,)), vectors)
    assert torch.equal(t.data.__getitems__([(7, 0), (2, 1)])["cond"], vectors[[7, 2]])
    asked = []
    t.modules["rdm"].network.register_forward_pre_hook(lambda module, args: asked.append(args[2]))
    metrics = t.evaluate(t.modules, 0).metrics
    assert torch.equal(asked[0], vectors[ORDER[:200]])
    assert "rep_agreement" not in metrics


def test_each_view_has_the_cluster_of_its_own_z():
    clusters = torch.stack([torch.arange(400) % 4, torch.arange(400) % 3], dim=1)
    model = build(RepMLPConfig(width=16, depth=1, condition="cluster"), RepMLP, Space((5,)), Space((), vocab=4))
    z = torch.cat([draw(400, 0), draw(400, 1)], dim=1)
    t = RDMTask(
        model, ShardedViews([z]), ShardedViews([draw(200, 2)]), ShardedViews([clusters]), clusters[:200, 0], Facts()
    )
    batch = t.data.__getitems__([(7, 0), (7, 1), (9, 3)])
    assert batch["cond"].tolist() == [7 % 4, 7 % 3, 9 % 3]
    assert torch.equal(batch["z"], z[[7, 7, 9], [0, 1, 1]])
    assert torch.equal(t.cond, clusters[ORDER, ORDER % 2])
    assert torch.equal(t.train, z[ORDER, ORDER % 2])


def test_batches_take_one_of_the_views():
    t = task()
    batch = t.data.__getitems__([(3, 0), (3, 1), (4, 2)])
    expected = t.data.columns["z"].rows([3, 3, 4], [0, 1, 0])
    assert torch.equal(batch["z"], expected)


def test_agreement_says_whether_an_rdm_generates_the_class_asked_for(monkeypatch):
    labels, centers = torch.arange(400) % 4, 3 * torch.eye(4, 5)
    config = RepMLPConfig(width=16, depth=1, condition="class", sampler={"name": "ddim", "steps": 3})
    model = build(config, RepMLP, Space((5,)), Space((), vocab=4))
    z = centers[labels][:, None] + 0.3 * draw(400, 0)
    conditions = ShardedViews([labels[:, None]])
    t = RDMTask(model, ShardedViews([z]), ShardedViews([z[:200]]), conditions, labels[:200], Facts())
    for shift, expected in ((0, 1.0), (1, 0.0)):
        monkeypatch.setattr(model, "sample", lambda cond, noise, shift=shift, **_: centers[(cond + shift) % 4] + 0.6)
        metrics = t.evaluate(t.modules, 0).metrics
        assert metrics["rep_agreement"] == pytest.approx(expected, abs=0.05)
        assert metrics["rep_agreement_real"] > 0.95


@pytest.mark.parametrize(("held_out", "has_shares"), [(1, False), (3, False), (4, True)])
def test_figures_of_too_few_held_out_images_are_left_out(held_out, has_shares):
    config = RepMLPConfig(width=16, depth=1, sampler={"name": "ddim", "steps": 3})
    model = build(config, RepMLP, Space((5,)), None)
    few = RDMTask(model, ShardedViews([draw(30, 0)]), ShardedViews([draw(held_out, 2)]), None, None, Facts())
    result = few.evaluate(few.modules, 0)
    assert result.score == result.metrics["rep_fd"] < math.inf
    assert {"rep_precision", "rep_recall"} <= result.metrics.keys() or not has_shares
    words = quality(result.metrics)
    assert ("precision" in words, "rep-FD" in words) == (has_shares, True)
