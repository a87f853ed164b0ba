"""STL-10 (Coates, Lee, Ng, 2011): 5,000 labeled and 100,000 unlabeled photographs of 96 x 96 pixels."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torchvision import datasets

from rcg.core.registry import DATASETS
from rcg.data.datasets._torchvision import ArraySource, TorchvisionConfig, fetch


class STL10Config(TorchvisionConfig):
    """Settings of STL-10."""

    name: str = "stl10"
    image_size: PositiveInt = 96
    """Side of the square images after preprocessing, in pixels."""
    split: Literal["train", "unlabeled", "train+unlabeled"] = "train"
    """Which images to use; only `train` alone has labels."""


@DATASETS.register
class STL10(ArraySource):
    """Color photographs, uint8; ten classes, or none as soon as unlabeled images are included."""

    Config = STL10Config

    def __init__(self, config: STL10Config) -> None:
        """Read the split; raises `UserError` if it is missing or cannot be downloaded."""
        data = fetch(config, datasets.STL10, datasets.STL10.base_folder, split=config.split)
        labels = torch.from_numpy(data.labels) if (data.labels >= 0).all() else None
        super().__init__(torch.from_numpy(data.data), labels, data.classes)  # (N, 3, 96, 96)
