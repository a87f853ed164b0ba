"""Representations are computed once, shard by shard, and served to nobody else."""

import pytest
import torch
from rcg.encoders.moco_v3 import MoCoV3, MoCoV3Config

from rcg.core.errors import UserError
from rcg.data.datasets.digits import DigitsConfig
from rcg.data.images import load_images
from rcg.distributed import launch as parallel
from rcg.encoding import cache
from rcg.encoding.representation import Representation, Transform

CONFIG = {"arch": "resnet18", "width": 4, "depth": 1, "projector_hidden": 8, "projector_dim": 6}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Representation(MoCoV3(MoCoV3Config(**CONFIG), 16), Transform("per_sample"))


@pytest.fixture
def images():
    return load_images(DigitsConfig(limit=60, crop="random", flip=True))[0]


def compute(images, encoder, folder, views=2):
    return cache.representations(images, encoder, views, folder, parallel.start(), "train")


def everything(views):
    positions = torch.arange(len(views))
    return torch.stack([views.rows(positions, torch.full_like(positions, v)) for v in range(views.views)], dim=1)


def test_every_view_of_every_image_has_its_representation(images, encoder, tmp_path):
    rep = everything(compute(images, encoder, tmp_path))
    assert rep.shape == (len(images), 2, 6)
    for position, view in ((0, 0), (7, 1)):
        expected = encoder.encode(images[(position, view)]["image"][None])[0]
        torch.testing.assert_close(rep[position, view], expected, atol=1e-5, rtol=1e-4)


def test_the_second_time_nothing_is_encoded(images, encoder, tmp_path, monkeypatch, capsys):
    first = everything(compute(images, encoder, tmp_path))
    monkeypatch.setattr(encoder, "encode", lambda image: pytest.fail("encoded again"))
    assert torch.equal(everything(compute(images, encoder, tmp_path)), first)
    assert "from" in capsys.readouterr().out


def test_a_killed_run_loses_only_the_shards_it_had_not_written(images, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 16)
    whole = everything(compute(images, encoder, tmp_path))
    (folder,) = tmp_path.iterdir()
    shards = sorted(folder.iterdir())
    assert len(shards) == 4
    shards[2].unlink()
    encoded, encode = [], encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda image: encoded.append(len(image)) or encode(image))
    torch.testing.assert_close(everything(compute(images, encoder, tmp_path)), whole)
    assert sum(encoded) == 16 * 2


def test_another_encoder_and_other_images_get_caches_of_their_own(images, encoder, tmp_path):
    compute(images, encoder, tmp_path)
    torch.manual_seed(1)
    compute(images, Representation(MoCoV3(MoCoV3Config(**CONFIG), 16), Transform("per_sample")), tmp_path)
    compute(load_images(DigitsConfig(limit=50))[0], encoder, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_shard_that_belongs_elsewhere_is_refused(images, encoder, tmp_path):
    compute(images, encoder, tmp_path)
    (mine,) = tmp_path.glob("*/shard-*")
    compute(load_images(DigitsConfig(limit=50))[0], encoder, tmp_path / "other")
    (foreign,) = (tmp_path / "other").glob("*/shard-*")
    mine.write_bytes(foreign.read_bytes())
    with pytest.raises(UserError, match="caches other images or another network"):
        compute(images, encoder, tmp_path)
