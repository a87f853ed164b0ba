"""Random augmentation, and pairs of augmented views for contrastive pre-training."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from rcg.config import AugmentConfig
from rcg.core.errors import UserError
from rcg.core.rng import fold_seed
from rcg.data.images import Images

MOCO_BLUR, MOCO_SOLARIZE = (1.0, 0.1), (0.0, 0.2)
"""Shares of first and second views that MoCo v3 blurs and solarizes (its main_moco.py; Grill et al., 2020, Table 6)."""
SOLARIZE_FROM = 128 / 255
"""Values from here on are inverted."""


class Pair(TypedDict):
    """Two views `(2, 3, S, S)` float32 in [0, 1] of one image; label and position are those of `Sample`."""

    views: Tensor
    label: Tensor
    index: int


class ContrastivePairs(Dataset[Pair]):
    """Pairs of random views; a pair depends only on the image's index in the source and on the draw."""

    def __init__(self, images: Images, augment: AugmentConfig) -> None:
        """Augment `images`, at their own size unless `augment` names another.

        Raises:
            UserError: a range of `augment` falls instead of rising.
        """
        self.images = images
        self.in_memory = images.in_memory
        size = augment.size or images.config.image_size
        self._augmentations = [augmentation(augment, size, view) for view in range(2)]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        """Return the pair of `(position, draw)`.

        Raises:
            IndexError: there is no such position.
        """
        position, draw = key
        image = self.images.raw(position)
        if torch.equal(image[0], image[1]) and torch.equal(image[1], image[2]):
            image = image[:1]  # the costly color transforms skip single-channel images, which they would not change
        # Evaluations run in autocast, and torchvision does not rotate images with half-precision coordinates.
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
            # Not torch.manual_seed: that reseeds every accelerator too, which fork_rng would not restore.
            torch.default_generator.manual_seed(fold_seed(int(self.images.indices[position]), draw))
            views = torch.stack([augment(image) for augment in self._augmentations])  # (2, 1 or 3, S, S)
        views = views.clamp_(0, 1).expand(-1, 3, -1, -1)
        return {"views": views, "label": self.images.label(position), "index": position}


def augmentation(config: AugmentConfig, size: int, view: int = 0) -> v2.Transform:
    """Build a random map from `(C, H, W)`, uint8 or float32 in [0, 1], to float32 `(C, size, size)`; C is 1 or 3.

    It draws from torch's global CPU generator.

    Args:
        config: the section.
        size: side of the view.
        view: 0 for the first view of a pair, 1 for the second.

    Raises:
        UserError: a range falls instead of rising.
    """
    for key, (low, high) in {"crop": config.crop or (0, 1), "ratio": config.ratio}.items():
        if low > high:
            raise UserError(f"encoder.train.augment.{key} must rise from low to high, not [{low}, {high}]")
    published = config.recipe == "moco_v3"
    scale = config.crop or ((0.2, 1.0) if size < 64 and not published else (0.08, 1.0))
    steps: list[v2.Transform] = [
        v2.RandomResizedCrop(size, scale=scale, ratio=config.ratio, antialias=True),
        v2.ToDtype(torch.float32, scale=True),  # after the crop: bytes are faster to resize
    ]
    if config.flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.rotate:
        steps.append(v2.RandomRotation(config.rotate, interpolation=v2.InterpolationMode.BILINEAR))
    # Colors.
    if config.jitter:
        s = config.jitter
        jitter = v2.ColorJitter(brightness=0.4 * s, contrast=0.4 * s, saturation=0.2 * s, hue=min(0.1 * s, 0.5))
        steps.append(v2.RandomApply([jitter], p=0.8))
    if config.gray:
        steps.append(v2.RandomGrayscale(config.gray))
    symmetric_blur = 0.5 if size >= 64 else 0.0
    blur = _share(config.blur, view, MOCO_BLUR if published else (symmetric_blur, symmetric_blur))
    if blur:
        kernel = 2 * max(size // 20, 1) + 1  # a tenth of the side, as in SimCLR
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], p=blur))
    solarize = _share(config.solarize, view, MOCO_SOLARIZE if published else (0.0, 0.0))
    if solarize:
        steps.append(v2.RandomSolarize(SOLARIZE_FROM, p=solarize))
    if config.erase:
        steps.append(v2.RandomErasing(config.erase))
    return v2.Compose(steps)


def _share(given: float | tuple[float, float] | None, view: int, default: tuple[float, float]) -> float:
    """Return the share of a view: both views have a single one."""
    if given is None:
        return default[view]
    return given[view] if isinstance(given, tuple) else given
