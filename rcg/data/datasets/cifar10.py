"""CIFAR-10 (Krizhevsky, 2009): 50,000 color photographs of 32 x 32 pixels."""

from __future__ import annotations

import torch
from torchvision import datasets

from rcg.core.registry import DATASETS
from rcg.data.datasets._torchvision import ArraySource, TorchvisionConfig, fetch


class CIFAR10Config(TorchvisionConfig):
    """Settings of CIFAR-10."""

    name: str = "cifar10"


@DATASETS.register
class CIFAR10(ArraySource):
    """Color photographs, ten classes, uint8."""

    Config = CIFAR10Config

    def __init__(self, config: CIFAR10Config) -> None:
        """Read the training split; raises `UserError` if it is missing or cannot be downloaded."""
        data = fetch(config, datasets.CIFAR10, datasets.CIFAR10.base_folder, train=True)
        pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2)  # (N, 3, 32, 32)
        super().__init__(pixels, torch.tensor(data.targets), data.classes)
