"""Randomness as a function of names and numbers: (seed, step, rank) in training, (seed, sample index) in sampling."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rcg.core.contracts import Noise


def fold_seed(*keys: int | str) -> int:
    """Mix integers and words into one well-spread 63-bit seed."""
    words = [zlib.crc32(key.encode()) if isinstance(key, str) else key for key in keys]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


class SampleNoise:
    """One random stream per sample of a batch, so that a sample never depends on its batch.

    Noise is drawn on the CPU, whose generator is the same on every machine.
    """

    def __init__(self, seed: int, indices: Sequence[int], use: str, device: torch.device | str = "cpu") -> None:
        """Open the streams of the samples `indices`; streams of another `use` are independent of them."""
        self.device = torch.device(device)
        self.generators = [torch.Generator().manual_seed(fold_seed(seed, index, use)) for index in indices]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return `(B, *shape)` standard normal draws."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self.generators]).to(self.device)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Return `(B, *shape)` uniform draws from [0, 1)."""
        return torch.stack([torch.rand(tuple(shape), generator=g) for g in self.generators]).to(self.device)


class ScaledNoise:
    """A noise source that multiplies the normal draws of another one by a factor."""

    def __init__(self, noise: Noise, factor: float) -> None:
        self.noise, self.factor = noise, factor

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return `(B, *shape)` normal draws with std `factor`."""
        return self.factor * self.noise.normal(shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Return `(B, *shape)` uniform draws from [0, 1), unchanged."""
        return self.noise.uniform(shape)
