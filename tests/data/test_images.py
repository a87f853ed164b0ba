"""Splits and reproducible views."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import rcg.data.images as images_module
from rcg.core.errors import UserError
from rcg.core.registry import DATASETS
from rcg.data.datasets.digits import DigitsConfig
from rcg.data.images import DataSource, Images, load_images, resize
from tests.data.noise import Noise, config


@pytest.fixture
def digits() -> Any:
    return DATASETS.get("digits").Config


def test_a_view_is_a_float_square_with_label_and_position() -> None:
    sample = Images(Noise(height=20, width=31), [4, 3], config(image_size=16))[1]
    assert sample["image"].shape == (3, 16, 16)
    assert sample["image"].dtype == torch.float32
    assert (sample["label"].item(), sample["label"].dtype, sample["index"]) == (1, torch.int64, 1)


def test_autocast_changes_no_view() -> None:
    moved = config(shift=0.1, rotate=20)
    expected = Images(Noise(), [3], moved)[0, 1]["image"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Images(Noise(), [3], moved)[0, 1]["image"], expected)


def test_unlabeled_images_carry_minus_one_and_no_labels() -> None:
    source = Noise()
    source.labels = None
    images = Images(source, [0, 1], config())
    assert images[0]["label"].item() == -1
    assert images.labels is None


def test_labels_and_classes_are_those_of_the_chosen_images() -> None:
    images = Images(Noise(), [5, 2, 1], config())
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1]
    assert images.classes == ("even", "odd")


@pytest.mark.parametrize(("height", "width"), [(8, 13), (13, 8)])
def test_without_random_crops_the_center_is_cropped(height: int, width: int) -> None:
    source = Noise(height=height, width=width)
    top, left = (height - 8) // 2, (width - 8) // 2
    expected = source.pixels[0, :, top : top + 8, left : left + 8] / 255
    torch.testing.assert_close(Images(source, [0], config())[0]["image"], expected)


def test_resizing_agrees_with_pillow() -> None:
    pixels = Noise(height=40, width=60).pixels[0]
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((24, 16), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    torch.testing.assert_close(resize(pixels, 16), expected, atol=1.5 / 255, rtol=0)


def test_bicubic_overshoot_stays_in_range() -> None:
    board = torch.eye(8, dtype=torch.uint8).mul(255).expand(3, -1, -1)
    enlarged = resize(board, 32)
    assert enlarged.min() == 0
    assert enlarged.max() == 1


def test_sixteen_bits_are_not_rounded_to_eight() -> None:
    faint = torch.full((3, 8, 8), 1 / 65535)
    torch.testing.assert_close(resize(faint, 16), torch.full((3, 16, 16), 1 / 65535))


def test_odd_views_mirror_the_view_before_them() -> None:
    source = Noise(width=30)
    torch.testing.assert_close(Images(source, [0], config(flip=True))[0]["image"], source.pixels[0, :, :, 11:19] / 255)
    images = Images(source, [0], config(flip=True, crop="random"))
    for view in (0, 2, 4):
        torch.testing.assert_close(images[0, view + 1]["image"], images[0, view]["image"].flip(-1))


def test_without_flip_no_view_is_mirrored() -> None:
    images = Images(Noise(), [0], config())
    assert torch.equal(images[0, 1]["image"], images[0]["image"])


def test_random_crops_differ_between_views_and_images_and_lie_inside() -> None:
    source = Noise(count=40, height=8, width=30)
    source.pixels[:] = torch.arange(30, dtype=torch.uint8)
    images = Images(source, range(40), config(crop="random"))
    lefts = {round(images[0, view]["image"][0, 0, 0].item() * 255) for view in range(200)}
    assert lefts == set(range(23))
    assert len({round(images[index]["image"][0, 0, 0].item() * 255) for index in range(40)}) > 5


def test_a_view_depends_on_the_image_and_not_on_its_position() -> None:
    source = Noise(height=20, width=20)
    many, one = (Images(source, indices, config(crop="random")) for indices in ([5, 1, 3], [3]))
    assert torch.equal(many[2, 7]["image"], one[0, 7]["image"])


def test_views_leave_the_global_generator_alone() -> None:
    images = Images(Noise(height=20, width=20), [0], config(crop="random"))
    before = torch.get_rng_state()
    images[0, 3]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_position_beyond_the_end_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        Images(Noise(), [0, 1], config())[2]


def test_images_are_batched_by_a_loader() -> None:
    images = Images(Noise(), range(6), config())
    batch = next(iter(DataLoader(images, batch_size=4)))
    assert batch["image"].shape == (4, 3, 8, 8)
    assert batch["index"].tolist() == [0, 1, 2, 3]


def test_the_fingerprint_follows_everything_that_changes_an_image() -> None:
    source, other = Noise(), Noise()
    other.fingerprint = "f" * 16
    variants = [
        Images(source, [0, 1], config()),
        Images(source, [1, 0], config()),
        Images(source, [0, 1], config(image_size=4)),
        Images(source, [0, 1], config(crop="random")),
        Images(source, [0, 1], config(flip=True)),
        Images(other, [0, 1], config()),
    ]
    assert len({images.fingerprint for images in variants}) == len(variants)
    assert Images(source, [0, 1], config(num_workers=3)).fingerprint == variants[0].fingerprint


def test_the_split_is_disjoint_and_complete(digits: Any) -> None:
    train, validation = load_images(digits(validation=0.25))
    chosen = torch.cat([train.indices, validation.indices])
    assert chosen.sort().values.tolist() == list(range(1797))
    assert len(validation) == pytest.approx(449, abs=40)


def test_the_split_follows_its_seed_and_nothing_else(digits: Any) -> None:
    first, again, other = (load_images(digits(split_seed=seed)).validation.indices for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_limit_draws_images_of_all_kinds(digits: Any) -> None:
    train, validation = load_images(digits(limit=100))
    assert len(train) + len(validation) == 100
    assert len(validation) == pytest.approx(10, abs=6)
    assert train.labels is not None
    assert len(train.labels.unique()) == 10


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_both_parts_of_a_small_split_get_an_image(digits: Any, share: float) -> None:
    train, validation = load_images(digits(limit=2, validation=share))
    assert (len(train), len(validation)) == (1, 1)


class Names(DataSource):
    """Images with names."""

    fingerprint = "names"

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> torch.Tensor:
        return torch.zeros(3, 8, 8)

    def key(self, index: int) -> str:
        return self.names[index]


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the names of both parts of a split of named images."""

    def split_names(names: list[str], **keys: Any) -> tuple[set[str], set[str]]:
        monkeypatch.setattr(DATASETS, "get", lambda name: lambda config: Names(names))
        parts = load_images(config(**keys))
        train, validation = ({names[index] for index in part.indices} for part in parts)
        return train, validation

    return split_names


@pytest.mark.parametrize("count", [16, 24, 60, 1000])
@pytest.mark.parametrize("place", ["before", "after"])
def test_no_image_that_was_trained_on_is_held_out_when_the_data_set_grows(split: Any, count: int, place: str) -> None:
    names = [f"{index:04d}.png" for index in range(count)]
    added = [f"{'0000' if place == 'before' else '9999'}-{index}.png" for index in range(3)]
    train, held_out = split(names)
    train_later, held_out_later = split(sorted(names + added))
    assert not train & held_out_later
    if count == 1000:
        assert held_out <= held_out_later
        assert train <= train_later


@pytest.mark.parametrize(("count", "least"), [(2, 1), (3, 1), (4, 1), (10, 2), (24, 4), (30, 4)])
def test_small_data_sets_hold_out_enough_images_to_be_scored(split: Any, count: int, least: int) -> None:
    for seed in range(50):
        train, held_out = split([str(index) for index in range(count)], split_seed=seed)
        assert len(train) + len(held_out) == count
        assert least <= len(held_out) < count


def test_the_share_is_that_of_the_images(split: Any) -> None:
    _, held_out = split([str(index) for index in range(20_000)], validation=0.3)
    assert len(held_out) / 20_000 == pytest.approx(0.3, abs=0.015)


class Official(Names):
    """Named images with an official validation split."""

    def official_validation(self) -> DataSource:
        return Names(["x", "y", "z"])


def test_an_official_validation_split_is_used_unless_a_share_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATASETS, "get", lambda name: lambda config: Official([str(index) for index in range(50)]))
    train, validation = load_images(config())
    assert (len(train), len(validation)) == (50, 3)
    assert validation.source is not train.source
    train, validation = load_images(config(validation=0.5))
    assert len(train) + len(validation) == 50
    assert validation.source is train.source
    train, validation = load_images(config(limit=2))
    assert (len(train), len(validation)) == (2, 2)


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (2, 2000), (1, 16000)])
def test_a_thin_picture_takes_little_memory(crop: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    largest, resize_as_before = 0, images_module.F.resize

    def measured(image: torch.Tensor, size: list[int], **keys: Any) -> torch.Tensor:
        nonlocal largest
        resized = resize_as_before(image, size, **keys)
        largest = max(largest, resized.numel())
        return resized

    monkeypatch.setattr(images_module.F, "resize", measured)
    image = Images(Noise(count=1, height=shape[0], width=shape[1]), [0], config(image_size=256, crop=crop))[0]["image"]
    assert image.shape == (3, 256, 256)
    assert largest <= 3 * 256 * 256 * 8


def test_the_middle_of_a_thin_picture_is_its_center_crop() -> None:
    source = Noise(count=1, height=4, width=4001)
    source.pixels[:] = 0
    source.pixels[..., 1998:2003] = 255
    torch.testing.assert_close(Images(source, [0], config(image_size=4))[0]["image"], torch.ones(3, 4, 4))


def test_large_pictures_are_resized_as_small_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Noise(count=1, height=40, width=61).pixels[0]
    expected = resize(image, 16)
    monkeypatch.setattr(images_module, "LARGE", 100)
    assert torch.equal(resize(image, 16), expected)


def test_a_single_image_cannot_be_split(digits: Any) -> None:
    with pytest.raises(UserError, match=r"'digits' has 1 image\(s\) under data.limit=1, but a split needs at least 2"):
        load_images(digits(limit=1))


def test_digits_span_the_unit_interval_in_equal_channels(digits: Any) -> None:
    source = load_images(digits()).train.source
    image = source.load(0)
    assert image.shape == (3, 8, 8)
    assert torch.equal(image[0], image[2])
    assert max(source.load(index).max().item() for index in range(20)) == 1
    assert len(source.fingerprint) == 16


class Ramp(DataSource):
    fingerprint = "ramp"

    def __len__(self):
        return 1

    def load(self, index):
        return torch.linspace(0, 1, 32).expand(3, 32, 32)


def test_every_view_but_the_first_is_shifted_and_a_ramp_moves_by_what_the_shift_allows():
    plain = Images(Ramp(), [0], DigitsConfig(image_size=32))[0]["image"]
    shifted = Images(Ramp(), [0], DigitsConfig(image_size=32, shift=0.1))
    assert torch.equal(shifted[(0, 0)]["image"], plain)
    moved = [(shifted[(0, view)]["image"] - plain)[0, 16, 16].item() * 31 for view in range(1, 200)]
    assert max(abs(m) for m in moved) == pytest.approx(3.2, abs=0.15)
    assert abs(sum(moved) / len(moved)) < 0.4
    assert torch.equal(shifted[(0, 7)]["image"], shifted[(0, 7)]["image"])
    assert shifted.fingerprint != Images(Ramp(), [0], DigitsConfig(image_size=32)).fingerprint


def test_every_view_but_the_first_is_turned_by_at_most_the_angle():
    plain = Images(Ramp(), [0], DigitsConfig(image_size=32))[(0, 0)]["image"]
    turned = Images(Ramp(), [0], DigitsConfig(image_size=32, rotate=10))
    assert torch.equal(turned[(0, 0)]["image"], plain)
    slopes = []
    for view in range(1, 200):
        middle = turned[(0, view)]["image"][0, 8:24, 8:24]
        down, along = (middle.diff(dim=dim).mean() for dim in (0, 1))
        slopes.append(math.degrees(math.atan2(down, along)))
    assert 9 < max(slopes) < 10.5
    assert -10.5 < min(slopes) < -9
    assert turned.fingerprint != Images(Ramp(), [0], DigitsConfig(image_size=32)).fingerprint
