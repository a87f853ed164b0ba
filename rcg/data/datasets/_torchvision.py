"""Base class of data sets in memory, and the loading of torchvision's data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torchvision import datasets

from rcg.config import RUNTIME, DataConfig
from rcg.core.errors import UserError


class ArraySource:
    """Base class of data sets in memory; subclasses load the arrays."""

    in_memory = True

    def __init__(self, pixels: Tensor, labels: Tensor | None, classes: Sequence[str]) -> None:
        """Hold `pixels` `(N, 1 or 3, H, W)`, uint8 or float32 in [0, 1], and `labels` `(N,)` of `classes`, if any."""
        self.pixels = pixels
        self.labels = None if labels is None else labels.long()
        self.classes = () if labels is None else tuple(classes)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def load(self, index: int) -> Tensor:
        """Return one image `(3, H, W)`; gray images get three equal channels."""
        return self.pixels[index].expand(3, -1, -1)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the pixels, labels and class names."""
        digest = hashlib.blake2b(repr((self.pixels.shape, self.classes)).encode(), digest_size=8)
        for chunk in self.pixels.split(1024):  # a layout other than NCHW is copied piece by piece
            digest.update(chunk.contiguous().numpy().data)
        if self.labels is not None:
            digest.update(self.labels.numpy().data)
        return digest.hexdigest()


class TorchvisionConfig(DataConfig):
    """Settings of a data set that torchvision can download."""

    root: Annotated[Path, RUNTIME] = Path("data")
    """Folder that holds the data set's own folder."""
    download: Annotated[bool, RUNTIME] = False
    """Download the data set into `root` if it is not there."""


def fetch(config: TorchvisionConfig, build: Callable[..., Any], folder: str, **options: Any) -> Any:
    """Load a data set with torchvision.

    Args:
        config: its section.
        build: torchvision's class; an instance is returned.
        folder: the folder under `config.root` that the class reads.
        options: further arguments of the class.

    Raises:
        UserError: the files are missing or damaged, or cannot be downloaded.
    """
    root = config.root.expanduser()
    try:
        return build(root, download=config.download, **options)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        if config.download:
            raise UserError(f"data set {config.name!r} could not be downloaded into {root}: {reason}") from error
        raise UserError(
            f"data set {config.name!r} is missing or damaged: there is no complete {root / folder}; "
            "set data.download=true to fetch it, or data.root to the folder that holds it"
        ) from error


class MNISTFormat(ArraySource):
    """Base class of MNIST and data sets in its format: 28 x 28 gray pixels, uint8, ten classes.

    Attributes:
        build: torchvision's class.
    """

    build: ClassVar[type[datasets.MNIST]]

    def __init__(self, config: TorchvisionConfig) -> None:
        """Read the training split.

        Raises:
            UserError: the files are missing or damaged, or cannot be downloaded.
        """
        data = fetch(config, self.build, f"{self.build.__name__}/raw", train=True)
        super().__init__(data.data.unsqueeze(1), torch.as_tensor(data.targets), data.classes)
