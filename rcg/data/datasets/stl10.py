"""STL-10 (Coates, Lee, Ng, 2011): 113,000 photographs of 96 x 96 pixels, 100,000 of them without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torchvision import datasets

from rcg.config import ImageSize
from rcg.core.registry import DATASETS
from rcg.data.datasets._torchvision import Archive, Arrays, ArraySource, TorchvisionConfig, read_files


class STL10Config(TorchvisionConfig):
    """Settings of STL-10."""

    name: str = "stl10"
    image_size: ImageSize = 96
    """Side of the square images after preprocessing, in pixels."""
    split: Literal["train", "unlabeled", "train+unlabeled"] = "train"
    """Which images to train on; only `train` alone has labels."""


@DATASETS.register
class STL10(ArraySource):
    """Color photographs, uint8; ten classes, or none as soon as unlabeled images are included."""

    Config = STL10Config

    def __init__(self, config: STL10Config, split: str | None = None) -> None:
        """Read a split, the configured one unless `split` names another.

        Raises:
            UserError: it is missing or cannot be downloaded.
        """
        theirs = datasets.STL10
        is_labeled = "unlabeled" not in config.split

        def read(folder: Path) -> Arrays:
            names = (split or config.split).split("+")
            parts = [np.fromfile(folder / f"{name}_X.bin", np.uint8).reshape(-1, 3, 96, 96) for name in names]
            pixels = torch.from_numpy(np.concatenate(parts) if len(parts) > 1 else parts[0]).mT  # columns come first
            if not is_labeled:
                return Arrays(pixels, None, ())
            labels = torch.from_numpy(np.fromfile(folder / f"{names[0]}_y.bin", np.uint8)).long() - 1
            return Arrays(pixels, labels, (folder / "class_names.txt").read_text(encoding="utf-8").splitlines())

        self._config = config
        archives = [Archive([theirs.url], theirs.tgz_md5)]
        super().__init__(*read_files(config, theirs.base_folder, archives, read))

    def official_validation(self) -> STL10:
        """Return the test images, with labels if the training images have them."""
        return STL10(self._config, "test")
