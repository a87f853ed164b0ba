"""MNIST (LeCun, Bottou, Bengio, Haffner, 1998): 60,000 handwritten digits of 28 x 28 pixels."""

from __future__ import annotations

from torchvision import datasets

from rcg.core.registry import DATASETS
from rcg.data.datasets._torchvision import MNISTFormat, TorchvisionConfig


class MNISTConfig(TorchvisionConfig):
    """Settings of MNIST."""

    name: str = "mnist"


@DATASETS.register
class MNIST(MNISTFormat):
    """Gray digits, ten classes, uint8."""

    Config = MNISTConfig
    build = datasets.MNIST
