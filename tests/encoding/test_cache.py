"""Representations and latents are computed once, shard by shard, and served to nobody else."""

import pytest
import torch
from PIL import Image

from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.data.datasets.digits import DigitsConfig
from rcg.data.datasets.image_folder import ImageFolderConfig
from rcg.data.images import load_images
from rcg.distributed.launch import launch
from rcg.encoders.moco_v3 import MoCoV3, MoCoV3Config
from rcg.encoding import cache
from rcg.encoding.representation import Representation
from rcg.encoding.transform import Transform
from tests.toy_tokenizer import ToyTokenizer, ToyTokenizerConfig

CONFIG = {"arch": "resnet18", "width": 4, "depth": 1, "projector_hidden": 8, "projector_dim": 6}


def representation(seed=0):
    torch.manual_seed(seed)
    return Representation(MoCoV3(MoCoV3Config(**CONFIG), 16), Transform("per_sample"))


@pytest.fixture
def encoder():
    return representation()


@pytest.fixture
def images():
    return load_images(DigitsConfig(limit=60, crop="random", flip=True)).train


def compute(images, encoder, folder, views=2):
    return cache.representation_cache(images, encoder, views, folder, "train").fill(encoder.encode, launch())


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
    (folder,) = tmp_path.iterdir()
    assert (
        f"representations of train images: {len(images)} images in 2 view(s) from {folder}" in capsys.readouterr().out
    )


def test_a_killed_run_loses_only_the_shards_it_had_not_written(images, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_SIZE", 16)
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
    compute(images, representation(seed=1), tmp_path)
    compute(load_images(DigitsConfig(limit=50)).train, encoder, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_shard_that_belongs_elsewhere_is_refused(images, encoder, tmp_path):
    compute(images, encoder, tmp_path)
    (own,) = tmp_path.glob("*/*.safetensors")
    compute(load_images(DigitsConfig(limit=50)).train, encoder, tmp_path / "other")
    (foreign,) = (tmp_path / "other").glob("*/*.safetensors")
    own.write_bytes(foreign.read_bytes())
    with pytest.raises(UserError, match="holds tensors of other images or of another network"):
        compute(images, encoder, tmp_path)


def test_tokens_are_stored_in_two_bytes_where_they_fit():
    class Tokens(ToyTokenizer):
        vocab = 1024

        @property
        def space(self):
            return Space((4, 4), vocab=self.vocab)

        def posterior(self, image):
            return torch.full((2, 4, 4), 1023)

    packed = cache.pack(Tokens(ToyTokenizerConfig(), 16), torch.zeros(2, 3, 8, 8))
    assert packed.dtype == torch.int16
    assert torch.equal(cache.unpack(packed), torch.full((2, 4, 4), 1023))
    Tokens.vocab = 2**15
    assert cache.pack(Tokens(ToyTokenizerConfig(), 16), torch.zeros(2, 3, 8, 8)).dtype == torch.int32


def test_an_encoder_with_damaged_weights_is_refused_before_its_output_is_stored(images, tmp_path):
    broken = representation()
    next(broken.encoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"representations of train images: .* not finite: its weights are damaged"):
        compute(images, broken, tmp_path)
    assert not list(tmp_path.glob("*/*"))


def test_pictures_that_changed_in_place_are_encoded_again(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "pictures").mkdir()

    def paint(color):
        for number in range(6):
            Image.new("RGB", (16, 16), (color, number, 0)).save(tmp_path / "pictures" / f"{number}.bmp")
        return load_images(ImageFolderConfig(root=tmp_path / "pictures", image_size=16)).train

    before = everything(compute(paint(0), encoder, tmp_path / "cache"))
    after = everything(compute(paint(200), encoder, tmp_path / "cache"))
    assert before.shape == after.shape
    assert not torch.allclose(before, after)
