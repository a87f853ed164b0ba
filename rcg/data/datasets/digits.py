"""The 1,797 handwritten digits of 8 x 8 pixels in scikit-learn; nothing is downloaded."""

from __future__ import annotations

import torch

from rcg.config import DataConfig, ImageSize
from rcg.core.errors import UserError
from rcg.core.registry import DATASETS
from rcg.data.datasets._torchvision import ArraySource


class DigitsConfig(DataConfig):
    """Settings of the digits."""

    name: str = "digits"
    image_size: ImageSize = 16
    """Side of the square images after preprocessing, in pixels."""


@DATASETS.register
class Digits(ArraySource):
    """Gray digits in 17 levels, ten classes, float32 in [0, 1]."""

    Config = DigitsConfig

    def __init__(self, config: DigitsConfig) -> None:
        """Read the digits from scikit-learn.

        Raises:
            UserError: scikit-learn is not installed.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UserError(f"data set {config.name!r} needs scikit-learn: pip install scikit-learn") from None
        bunch = load_digits()
        pixels = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)  # (N, 1, 8, 8)
        super().__init__(pixels, torch.from_numpy(bunch.target), [str(name) for name in bunch.target_names])
