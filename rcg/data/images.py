"""From a data set to tensors: sources, their split, and square images in [0, 1] in reproducible views."""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from rcg.config import DataConfig
from rcg.core.errors import UserError
from rcg.core.registry import DATASETS
from rcg.core.rng import fold_seed

CACHED_BYTES = 2**28
"""Most memory that the views of a data set may take."""
LEAST_VALIDATION = 4
"""Fewest validation images, where they are not more than a quarter: scores of three neighbors need them."""
LONGEST = 8
"""Longest side of a picture in short sides; thinner ones are cut before they are enlarged."""
LARGE = 2**24
"""Pixels above which the channels of a picture are resized one after the other."""


class DataSource(ABC):
    """Base class of data sets before preprocessing.

    Attributes:
        labels: `(N,)` int64, or `None` for unlabeled images.
        classes: names of the labels; empty for unlabeled images.
        in_memory: whether `load` reads no files.
    """

    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    in_memory: bool = True

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the content."""
        raise NotImplementedError

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def load(self, index: int) -> Tensor:
        """Return one image `(3, H, W)` in RGB: uint8, or float32 in [0, 1] where 8 bits are too few."""

    def key(self, index: int) -> str:
        """Return a name of an image that lasts while the data set grows; the split is drawn by it."""
        return str(index)

    def official_validation(self) -> DataSource | None:
        """Return the official validation or test split, None where there is none."""
        return None


class Sample(TypedDict):
    """One image `(3, S, S)` float32 in [0, 1], its label `()` int64 (-1: unlabeled) and its position."""

    image: Tensor
    label: Tensor
    index: int


class Images(Dataset[Sample]):
    """A subset of a source, as squares of one size, in several reproducible views.

    With `flip`, each odd view mirrors the view before it. With random crops, views are cropped at different places.
    A view depends only on the image's index in the source and on the view's number.

    Attributes:
        classes: names of the labels; empty if unlabeled.
        in_memory: whether reading an image touches no file.
    """

    def __init__(self, source: DataSource, indices: Sequence[int] | Tensor, config: DataConfig) -> None:
        """Choose the images `indices` `(M,)` of `source`, cropped as `config` says."""
        self.source = source
        self.indices = torch.as_tensor(indices, dtype=torch.int64)
        self.config = config
        self.classes, self.in_memory = source.classes, source.in_memory
        # Small data sets cache their views: cropping them again would take longer than a small network's step.
        self._cache: dict[tuple[int, int], Tensor] = {}
        view_bytes = 3 * config.image_size**2 * 4
        self._is_cached = source.in_memory and len(self.indices) * config.cached_views * view_bytes <= CACHED_BYTES

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Return view 0 of the image at `position`, or the view of `(position, view)`.

        Raises:
            IndexError: there is no such position.
        """
        position, view = key if isinstance(key, tuple) else (key, 0)
        image = self._cache.get((position, view))
        if image is None:
            image = self._view(position, view)
            if self._is_cached:
                self._cache[position, view] = image
        return {"image": image, "label": self.label(position), "index": position}

    def raw(self, position: int) -> Tensor:
        """Return the image as the source has it: `(3, H, W)`, uint8 or float32 in [0, 1]."""
        return self.source.load(int(self.indices[position]))

    def label(self, position: int) -> Tensor:
        """Return the label `()` int64 of the image at `position`; -1 if unlabeled."""
        return torch.tensor(-1) if self.source.labels is None else self.source.labels[self.indices[position]]

    @cached_property
    def labels(self) -> Tensor | None:
        """Labels `(M,)` int64 of these images; `None` if unlabeled."""
        return None if self.source.labels is None else self.source.labels[self.indices]

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the source, the chosen images, and the preprocessing."""
        config = self.config
        facts = (self.source.fingerprint, config.image_size, config.crop, config.flip, config.shift, config.rotate)
        digest = hashlib.blake2b(repr(facts).encode(), digest_size=8)
        digest.update(self.indices.numpy().data)
        return digest.hexdigest()

    @torch.autocast("cpu", enabled=False)  # affine maps in half precision would move images by other amounts
    def _view(self, position: int, view: int) -> Tensor:
        variant = view // 2 if self.config.flip else view
        generator = torch.Generator().manual_seed(fold_seed(int(self.indices[position]), variant))
        image = square(self.raw(position), self.config.image_size, generator if self.config.crop == "random" else None)
        if variant and (self.config.shift or self.config.rotate):
            image = self._move(image, generator)
        is_mirrored = self.config.flip and view % 2 == 1
        return image.flip(-1) if is_mirrored else image

    def _move(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Translate the image by a random share of its side and rotate it; border pixels are repeated."""
        shift_x, shift_y, turn = (torch.rand(3, generator=generator) * 2 - 1).tolist()
        angle = math.radians(self.config.rotate) * turn
        # The coordinates of `affine_grid` run from -1 to 1: a share of the side is twice as much in them.
        reach = 2 * self.config.shift
        cos, sin = math.cos(angle), math.sin(angle)
        theta = torch.tensor([[cos, -sin, reach * shift_x], [sin, cos, reach * shift_y]])
        places = affine_grid(theta[None], [1, *image.shape], align_corners=False)
        moved = grid_sample(image[None], places, mode="bicubic", padding_mode="border", align_corners=False)
        return moved[0].clamp(0, 1)


class Split(NamedTuple):
    """The training and the validation split; no image is in both."""

    train: Images
    validation: Images


def load_images(config: DataConfig) -> Split:
    """Open the data set that `config` names, with its official validation split, or some of its images as one.

    Whether an image is for validation follows from its key and `config.split_seed`, not from the images beside it: a
    data set that grows keeps its validation images and, from 16 images on, adds none that was trained on.

    Raises:
        UserError: the data set is missing, or has fewer images than its splits need.
    """
    source: DataSource = DATASETS.get(config.name)(config)
    official = source.official_validation() if config.validation is None else None
    order, draws = _draw(source, config)
    if official is not None:
        return Split(Images(source, order, config), Images(official, _draw(official, config)[0], config))
    if len(order) < 2:
        limit = f" under data.limit={config.limit}" if len(source) > 1 else ""
        raise UserError(f"data set {config.name!r} has {len(order)} image(s){limit}, but a split needs at least 2")
    share = 0.1 if config.validation is None else config.validation
    least = max(1, min(LEAST_VALIDATION, len(order) // 4))
    count = min(max(int((draws < share).sum()), least), len(order) - 1)
    return Split(Images(source, order[count:], config), Images(source, order[:count], config))


def _draw(source: DataSource, config: DataConfig) -> tuple[Tensor, np.ndarray]:
    """Draw the images of a source, at most `config.limit`.

    Returns:
        Their indices `(M,)`, and for each a number in [0, 1), by which they are sorted.
    """
    keys = (os.fsencode(f"{config.split_seed}/{source.key(index)}") for index in range(len(source)))
    digests = b"".join(hashlib.blake2b(key, digest_size=16).digest() for key in keys)
    place, chance = np.frombuffer(digests, dtype="<u8").reshape(-1, 2).T / 2**64
    chosen = np.argsort(chance, kind="stable")[: config.limit]
    order = chosen[np.argsort(place[chosen], kind="stable")]
    return torch.from_numpy(order), place[order]


def square(image: Tensor, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Resize the short side of `(3, H, W)`, uint8 or float32 in [0, 1], to `size`, and crop a square.

    Args:
        image: of any shape.
        size: side of the square in pixels.
        generator: draws the place of the square; None: its middle.

    Returns:
        `(3, size, size)` float32 in [0, 1].
    """
    height, width = image.shape[1:]
    longest = LONGEST * min(height, width)
    if longest < max(height, width):  # enlarged as a whole, a rule of 4000 x 1 pixels would take gigabytes
        image = _crop(image, min(height, longest), min(width, longest), generator)
    return _crop(resize(image, size), size, size, generator)


def _crop(image: Tensor, height: int, width: int, generator: torch.Generator | None) -> Tensor:
    spare = (image.shape[1] - height, image.shape[2] - width)
    if generator is None:
        top, left = (pixels // 2 for pixels in spare)
    else:
        top, left = (int(torch.randint(pixels + 1, (), generator=generator)) for pixels in spare)
    return image[:, top : top + height, left : left + width]


def resize(image: Tensor, size: int) -> Tensor:
    """Resize the short side of `(C, H, W)`, uint8 or float32 in [0, 1], to `size`; returns float32 in [0, 1]."""
    if len(image) > 1 and image[0].numel() > LARGE:  # a third of the memory, the same result
        return torch.cat([resize(channel[None], size) for channel in image])
    image = F.to_dtype(image, torch.float32, scale=True)
    image = F.resize(image, [size], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    return image.clamp(0, 1)  # bicubic interpolation overshoots
