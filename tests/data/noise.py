"""A small data source for tests."""

from typing import Any

import torch
from torch import Tensor

from rcg.config import DataConfig
from rcg.data.images import DataSource


class Noise(DataSource):
    """A source of color noise."""

    in_memory = True
    classes = ("even", "odd")
    fingerprint = "0123456789abcdef"

    def __init__(self, count: int = 6, height: int = 8, width: int = 8) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
        self.labels: Tensor | None = torch.arange(count) % 2

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, index: int) -> Tensor:
        return self.pixels[index]


def config(**keys: Any) -> DataConfig:
    return DataConfig(**{"name": "noise", "image_size": 8, **keys})
