"""ImageNet (ILSVRC 2012): 1.28 million color photographs in 1,000 classes, unpacked by torchvision."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from pydantic import PositiveInt
from torch import Tensor
from torchvision import datasets

from rcg.config import RUNTIME, DataConfig
from rcg.core.errors import UserError
from rcg.core.registry import DATASETS
from rcg.data.datasets.image_folder import decode


class ImageNetConfig(DataConfig):
    """Settings of ImageNet."""

    name: str = "imagenet"
    image_size: PositiveInt = 256
    """Side of the square images after preprocessing, in pixels."""
    root: Annotated[Path, RUNTIME] = Path("data")
    """Folder of the two archives, or of the files that torchvision unpacked from them."""


@DATASETS.register
class ImageNet:
    """Color photographs of any size, 1,000 classes, uint8, read from the files of the training split."""

    Config = ImageNetConfig
    in_memory = False

    def __init__(self, config: ImageNetConfig) -> None:
        """List the files; unpack the archives on first use.

        Raises:
            UserError: both the archives and the unpacked files are missing or damaged.
        """
        root = config.root.expanduser()
        try:
            data = datasets.ImageNet(root, split="train")
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"ImageNet is missing or damaged in {root} (data.root): put ILSVRC2012_devkit_t12.tar.gz and "
                "ILSVRC2012_img_train.tar there, from https://image-net.org/download-images"
            ) from error
        self.paths = [path for path, _ in data.samples]
        self.labels: Tensor | None = torch.tensor(data.targets)
        self.classes = tuple(", ".join(names) for names in data.classes)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def load(self, index: int) -> Tensor:
        """Decode one image `(3, H, W)` uint8."""
        return decode(Path(self.paths[index]))

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the file names, which contain the class."""
        digest = hashlib.blake2b(digest_size=8)
        for path in self.paths:
            digest.update(os.fsencode(os.path.basename(path)) + b"\0")
        return digest.hexdigest()
