"""What the data sets held in memory have in common, and how torchvision's classes are asked for theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcg.config import DataConfig
from rcg.core.errors import UserError


class ArraySource:
    """A source held in memory, from which data sets derive; they know where the arrays come from."""

    in_memory = True

    def __init__(self, pixels: Tensor, labels: Tensor | None, classes: Sequence[str]) -> None:
        """Hold `pixels` `(N, 1 or 3, H, W)`, uint8 or float32 in [0, 1], and `labels` `(N,)`."""
        self.pixels = pixels
        self.labels = None if labels is None else labels.long()
        self.classes = tuple(classes)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def load(self, index: int) -> Tensor:
        """Return one image `(3, H, W)`; gray images have three equal channels."""
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
    """Settings of a data set that torchvision can fetch."""

    root: Path = Path("data")
    """Folder that holds the data set's own folder."""
    download: bool = False
    """Fetch the data set into `root` when it is not there."""


def fetch(config: TorchvisionConfig, build: Callable[..., Any], folder: str, **options: Any) -> Any:
    """Let torchvision's class `build` read its `folder` under `config.root`, and return what it made.

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
    """What MNIST and the sets in its format share: 28 x 28 gray pixels, uint8, ten classes."""

    def __init__(self, config: TorchvisionConfig, build: Callable[..., Any]) -> None:
        """Read the training split that torchvision's class `build` knows.

        Raises:
            UserError: the files are missing or damaged, or cannot be downloaded.
        """
        data = fetch(config, build, f"{build.__name__}/raw", train=True)
        super().__init__(data.data.unsqueeze(1), torch.as_tensor(data.targets), data.classes)
