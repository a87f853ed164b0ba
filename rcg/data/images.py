"""From a data set to tensors: sources, their split, square images in [0, 1], and pairs of random views."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol, TypedDict

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from rcg.config import AugmentConfig, DataConfig
from rcg.core.errors import UserError
from rcg.core.registry import DATASETS
from rcg.core.rng import fold

KEPT_BYTES = 2**28
"""Most memory that the prepared views of a data set may take."""


class Source(Protocol):
    """A data set before preprocessing.

    Attributes:
        labels: `(N,)` int64, or `None` when the images are unlabeled.
        classes: names of the labels, empty when unlabeled.
        fingerprint: 16 hexadecimal digits that identify the content.
        in_memory: whether `load` reads no files.
    """

    labels: Tensor | None
    classes: tuple[str, ...]
    in_memory: bool

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the content."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def load(self, index: int) -> Tensor:
        """Return one image `(3, H, W)` in RGB: uint8, or float32 in [0, 1] where 8 bits are too few."""
        ...


class Sample(TypedDict):
    """One image `(3, S, S)` float32 in [0, 1], its label `()` int64 (-1: unlabeled) and its position."""

    image: Tensor
    label: Tensor
    index: int


class Pair(TypedDict):
    """Two views `(2, 3, S, S)` float32 in [0, 1] of one image; label and position are those of `Sample`."""

    views: Tensor
    label: Tensor
    index: int


class Images(Dataset[Sample]):
    """Some images of a source, as squares of one size, in several reproducible views.

    With `flip`, odd views mirror the view before them. With random crops, views are cut at different places.
    A view depends on nothing but the image's index in the source and the view's number.
    """

    def __init__(self, source: Source, indices: Sequence[int] | Tensor, config: DataConfig) -> None:
        """Choose the images `indices` `(M,)` of `source`, cut as `config` says."""
        self.source = source
        self.indices = torch.as_tensor(indices, dtype=torch.int64)
        self.config = config
        # Small data sets keep their views: cutting them again would take longer than a small network's step.
        self._kept: dict[tuple[int, int], Tensor] = {}
        bytes_of_all = len(self.indices) * config.kept_views * 3 * config.image_size**2 * 4
        self._keeps = source.in_memory and bytes_of_all <= KEPT_BYTES

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Return view 0 of the image at `position`, or the view that `(position, view)` names.

        Raises:
            IndexError: there is no such position.
        """
        position, view = key if isinstance(key, tuple) else (key, 0)
        image = self._kept.get((position, view))
        if image is None:
            image = self._cut(position, view)
            if self._keeps:
                self._kept[position, view] = image
        return {"image": image, "label": self.label(position), "index": position}

    def _cut(self, position: int, view: int) -> Tensor:
        image = resize(self.raw(position), self.config.image_size)
        cut = view // 2 if self.config.flip else view
        generator = torch.Generator().manual_seed(fold(int(self.indices[position]), cut))
        image = self._crop(image, generator)
        if cut and (self.config.shift or self.config.rotate):
            image = self._move(image, generator)
        mirrored = self.config.flip and view % 2 == 1
        return image.flip(-1) if mirrored else image

    def raw(self, position: int) -> Tensor:
        """Return the image as the source has it: `(3, H, W)`, uint8 or float32 in [0, 1]."""
        return self.source.load(int(self.indices[position]))

    def label(self, position: int) -> Tensor:
        """Return the label `()` int64 of the image at `position`, -1 when unlabeled."""
        return torch.tensor(-1) if self.source.labels is None else self.source.labels[self.indices[position]]

    @cached_property
    def labels(self) -> Tensor | None:
        """Labels `(M,)` int64 of these images, `None` when unlabeled."""
        return None if self.source.labels is None else self.source.labels[self.indices]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, empty when unlabeled."""
        return self.source.classes

    @property
    def in_memory(self) -> bool:
        """Whether reading an image touches no file."""
        return self.source.in_memory

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the source, the chosen images, and how they are cut."""
        config = self.config
        facts = (self.source.fingerprint, config.image_size, config.crop, config.flip, config.shift, config.rotate)
        digest = hashlib.blake2b(repr(facts).encode(), digest_size=8)
        digest.update(self.indices.numpy().data)
        return digest.hexdigest()

    def _crop(self, image: Tensor, generator: torch.Generator) -> Tensor:
        size = self.config.image_size
        spare_y, spare_x = image.shape[1] - size, image.shape[2] - size
        top, left = spare_y // 2, spare_x // 2
        if self.config.crop == "random":
            top = int(torch.randint(spare_y + 1, (), generator=generator))
            left = int(torch.randint(spare_x + 1, (), generator=generator))
        return image[:, top : top + size, left : left + size]

    def _move(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Shift the image by a random part of its side and turn it by a random angle, border pixels repeated."""
        shift_x, shift_y, turn = (torch.rand(3, generator=generator) * 2 - 1).tolist()
        angle = math.radians(self.config.rotate) * turn
        # The coordinates of `affine_grid` run from -1 to 1, so that a share of the side is twice as much there.
        reach = 2 * self.config.shift
        theta = torch.tensor(
            [
                [math.cos(angle), -math.sin(angle), reach * shift_x],
                [math.sin(angle), math.cos(angle), reach * shift_y],
            ]
        )
        where = nn.functional.affine_grid(theta[None], [1, *image.shape], align_corners=False)
        return nn.functional.grid_sample(
            image[None], where, mode="bicubic", padding_mode="border", align_corners=False
        ).clamp(0, 1)[0]


class Split(NamedTuple):
    """Images to learn from, and images held out for metrics; no image is in both."""

    train: Images
    validation: Images


class ContrastivePairs(Dataset[Pair]):
    """Pairs of random views; a pair depends on nothing but the image's index in the source and the draw."""

    def __init__(self, images: Images, augment: AugmentConfig) -> None:
        """Draw views of `images`, at their own size unless `augment` names another.

        Raises:
            UserError: a range of `augment` falls instead of rising.
        """
        self.images = images
        self.in_memory = images.in_memory
        self._augmentation = augmentation(augment, augment.size or images.config.image_size)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        """Return the pair that `(position, draw)` names.

        Raises:
            IndexError: there is no such position.
        """
        position, draw = key
        image = self.images.raw(position)
        if torch.equal(image[0], image[1]) and torch.equal(image[1], image[2]):
            image = image[:1]  # the costly color transforms skip single-channel images, which they would not change
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that reseeds every accelerator too, which fork_rng would not restore.
            torch.default_generator.manual_seed(fold(int(self.images.indices[position]), draw))
            views = torch.stack([self._augmentation(image) for _ in range(2)])  # (2, 1 or 3, S, S)
        views = views.clamp_(0, 1).expand(-1, 3, -1, -1)
        return {"views": views, "label": self.images.label(position), "index": position}


def load_images(config: DataConfig) -> Split:
    """Open the data set that `config` names, and split it by a permutation that follows `config.split_seed`.

    Raises:
        UserError: the data set is missing, or has fewer than the two images that a split needs.
    """
    source: Source = DATASETS.get(config.name)(config)
    generator = torch.Generator().manual_seed(fold(config.split_seed))
    chosen = torch.randperm(len(source), generator=generator)[: config.limit]
    if len(chosen) < 2:
        limited = f" under data.limit={config.limit}" if len(source) > 1 else ""
        raise UserError(f"data set {config.name!r} has {len(chosen)} image(s){limited}, but a split needs at least 2")
    held_out = min(max(round(config.validation * len(chosen)), 1), len(chosen) - 1)
    return Split(Images(source, chosen[held_out:], config), Images(source, chosen[:held_out], config))


def resize(image: Tensor, size: int) -> Tensor:
    """Bring the short side of `(3, H, W)`, uint8 or float32 in [0, 1], to `size`: float32 in [0, 1]."""
    image = F.to_dtype(image, torch.float32, scale=True)
    image = F.resize(image, [size], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    return image.clamp(0, 1)  # bicubic interpolation overshoots


def augmentation(config: AugmentConfig, size: int) -> v2.Transform:
    """Build a random map from `(C, H, W)`, uint8 or float32 in [0, 1], to float32 `(C, size, size)`; C is 1 or 3.

    It draws from torch's global CPU generator.

    Raises:
        UserError: a range falls instead of rising.
    """
    for key, (low, high) in {"crop": config.crop or (0, 1), "ratio": config.ratio}.items():
        if low > high:
            raise UserError(f"encoder.train.augment.{key} must rise from low to high, not [{low}, {high}]")
    scale = config.crop or ((0.2, 1.0) if size < 64 else (0.08, 1.0))
    steps: list[v2.Transform] = [
        v2.RandomResizedCrop(size, scale=scale, ratio=config.ratio, antialias=True),
        v2.ToDtype(torch.float32, scale=True),  # after the crop: bytes are faster to resize
    ]
    if config.flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.rotate:
        steps.append(v2.RandomRotation(config.rotate, interpolation=v2.InterpolationMode.BILINEAR))
    return v2.Compose(steps + _color_steps(config, size))


def _color_steps(config: AugmentConfig, size: int) -> list[v2.Transform]:
    steps: list[v2.Transform] = []
    if config.jitter:
        s = config.jitter
        jitter = v2.ColorJitter(brightness=0.4 * s, contrast=0.4 * s, saturation=0.2 * s, hue=min(0.1 * s, 0.5))
        steps.append(v2.RandomApply([jitter], p=0.8))
    if config.gray:
        steps.append(v2.RandomGrayscale(config.gray))
    blur = (0.5 if size >= 64 else 0.0) if config.blur is None else config.blur
    if blur:
        kernel = 2 * max(size // 20, 1) + 1  # a tenth of the side, as SimCLR chose
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], p=blur))
    if config.erase:
        steps.append(v2.RandomErasing(config.erase))
    return steps
