"""Pairs of random views."""

from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from rcg.config import AugmentConfig
from rcg.core.errors import UserError
from rcg.core.registry import DATASETS
from rcg.data.augment import ContrastivePairs, augmentation
from rcg.data.images import Images, load_images
from tests.data.noise import Noise, config

STILL = AugmentConfig(crop=(1, 1), ratio=(1, 1), flip=False, jitter=0, gray=0, blur=0)


@pytest.fixture
def digits() -> Any:
    return DATASETS.get("digits").Config


def test_pairs_leave_the_global_generator_alone() -> None:
    pairs = ContrastivePairs(Images(Noise(height=20, width=20), [0], config(crop="random")), AugmentConfig())
    before = torch.get_rng_state()
    pairs[0, 3]
    assert torch.equal(torch.get_rng_state(), before)


def test_pairs_are_two_different_views_of_the_images_own_size() -> None:
    pair = ContrastivePairs(Images(Noise(height=40, width=30), [2, 1], config(image_size=16)), AugmentConfig())[1, 0]
    assert pair["views"].shape == (2, 3, 16, 16)
    assert pair["views"].dtype == torch.float32
    assert not torch.equal(pair["views"][0], pair["views"][1])
    assert (pair["label"].item(), pair["index"]) == (1, 1)


def test_autocast_changes_no_pair(digits: Any) -> None:
    pairs = ContrastivePairs(load_images(digits()).train, AugmentConfig(rotate=12))
    expected = pairs[3, 5]["views"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pairs[3, 5]["views"], expected)


def test_a_pair_depends_on_the_image_and_the_draw_alone() -> None:
    source = Noise(height=20, width=20)
    many, one = (ContrastivePairs(Images(source, chosen, config()), AugmentConfig()) for chosen in ([5, 3], [3]))
    torch.manual_seed(1)
    first = many[1, 7]["views"]
    torch.manual_seed(2)
    assert torch.equal(one[0, 7]["views"], first)
    assert not torch.equal(one[0, 8]["views"], first)


def test_pairs_never_reseed_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("reseeds every device"))
    ContrastivePairs(Images(Noise(), [0], config()), AugmentConfig())[0, 0]


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(),
        AugmentConfig(rotate=30),
        AugmentConfig(jitter=9),
        AugmentConfig(gray=1),
        AugmentConfig(blur=1),
        AugmentConfig(erase=1),
    ],
)
def test_views_stay_in_range_whatever_is_switched_on(augment: AugmentConfig) -> None:
    pairs = ContrastivePairs(Images(Noise(height=20, width=20), range(6), config(image_size=16)), augment)
    views = torch.stack([pairs[index % 6, index]["views"] for index in range(12)])
    assert views.min() >= 0
    assert views.max() <= 1
    assert views.std() > 0.01


@pytest.mark.parametrize("key", ["flip", "rotate", "jitter", "gray", "blur", "erase"])
def test_each_transform_changes_views_when_switched_on_and_none_when_off(key: str) -> None:
    images = Images(Noise(), [0], config())
    active = AugmentConfig.model_validate({**STILL.model_dump(), key: {"flip": True, "rotate": 45}.get(key, 1)})
    still, moved = (ContrastivePairs(images, augment) for augment in (STILL, active))
    for view in still[0, 0]["views"]:
        torch.testing.assert_close(view, images[0]["image"])
    assert any(not torch.allclose(moved[0, draw]["views"], still[0, 0]["views"]) for draw in range(8))


def test_small_crops_and_blur_are_for_large_images_unless_asked_for() -> None:
    def described(size: int) -> str:
        return str(augmentation(AugmentConfig(), size))

    assert "scale=(0.2, 1.0)" in described(63)
    assert "Blur" not in described(63)
    assert "scale=(0.08, 1.0)" in described(64)
    assert "Blur" in described(64)


def test_gray_images_take_the_short_way_to_the_same_views() -> None:
    gray = Noise(height=20, width=20).pixels[0, :1]
    augment = augmentation(AugmentConfig(), 16)
    for seed in range(10):
        torch.manual_seed(seed)
        short = augment(gray)
        torch.manual_seed(seed)
        torch.testing.assert_close(short.expand(3, -1, -1), augment(gray.expand(3, -1, -1)), atol=1e-3, rtol=0)


def test_gray_sources_give_views_of_three_channels(digits: Any) -> None:
    views = ContrastivePairs(load_images(digits()).train, AugmentConfig())[0, 0]["views"]
    assert views.shape == (2, 3, 16, 16)
    assert torch.equal(views[:, 0], views[:, 2])


@pytest.mark.parametrize("key", ["crop", "ratio"])
def test_a_falling_range_is_refused_by_its_key(key: str) -> None:
    with pytest.raises(UserError, match=rf"augment\.{key} must rise"):
        ContrastivePairs(Images(Noise(), [0], config()), AugmentConfig.model_validate({key: (0.9, 0.5)}))


def steps(view: int, size: int = 224, **config: Any) -> dict[str, float]:
    """Return the probability of each random step of a view."""
    augment: Any = augmentation(AugmentConfig(**config), size, view)
    found = {}
    for step in augment.transforms:
        inner = step.transforms[0] if isinstance(step, v2.RandomApply) else step
        found[type(inner).__name__] = getattr(step, "p", 1.0)
    return found


def test_the_recipe_moco_v3_treats_both_views_as_its_authors_do() -> None:
    shared = {"ColorJitter": 0.8, "RandomGrayscale": 0.2, "RandomHorizontalFlip": 0.5}
    first, second = steps(0, recipe="moco_v3"), steps(1, recipe="moco_v3")
    assert shared.items() <= first.items()
    assert shared.items() <= second.items()
    assert (first["GaussianBlur"], second["GaussianBlur"]) == (1.0, 0.1)
    assert "RandomSolarize" not in first
    assert second["RandomSolarize"] == 0.2
    augment: Any = augmentation(AugmentConfig(recipe="moco_v3"), 224)
    assert tuple(augment.transforms[0].scale) == (0.08, 1.0)
    resnet: Any = augmentation(AugmentConfig(recipe="moco_v3", crop=(0.2, 1.0)), 224)
    assert tuple(resnet.transforms[0].scale) == (0.2, 1.0)


def test_the_symmetric_recipe_treats_both_views_alike_and_shares_may_differ_by_view() -> None:
    assert steps(0) == steps(1)
    assert steps(0)["GaussianBlur"] == 0.5
    assert "GaussianBlur" not in steps(0, size=32)
    assert "RandomSolarize" not in steps(1)
    asked = {"blur": (0.3, 0.0), "solarize": (0.0, 1.0)}
    assert steps(0, **asked)["GaussianBlur"] == 0.3
    assert "GaussianBlur" not in steps(1, **asked)
    assert steps(1, **asked)["RandomSolarize"] == 1.0


def test_solarization_inverts_the_bright_half() -> None:
    off = {"crop": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": False, "jitter": 0.0, "gray": 0.0, "blur": 0.0}
    augment = augmentation(AugmentConfig(**off, solarize=1.0), 4)
    image = torch.tensor([0.0, 0.25, 127 / 255, 128 / 255, 0.75, 1.0]).repeat(3, 6, 1)[:, :4, :4]
    bright = torch.tensor([128 / 255, 0.75, 1.0, 0.0]).expand(3, 4, 4)
    assert torch.equal(augment(image), image.where(image < 128 / 255, 1 - image))
    torch.testing.assert_close(augment(bright), bright.where(bright < 128 / 255, 1 - bright))
