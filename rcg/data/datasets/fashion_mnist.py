"""Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017): 60,000 gray images of clothes in MNIST's format."""

from __future__ import annotations

from torchvision import datasets

from rcg.core.registry import DATASETS
from rcg.data.datasets._torchvision import MNISTFormat, TorchvisionConfig


class FashionMNISTConfig(TorchvisionConfig):
    """Settings of Fashion-MNIST."""

    name: str = "fashion_mnist"


@DATASETS.register
class FashionMNIST(MNISTFormat):
    """Gray clothes, ten classes, uint8."""

    Config = FashionMNISTConfig
    build = datasets.FashionMNIST
