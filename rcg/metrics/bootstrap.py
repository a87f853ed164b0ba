"""How much a figure owes to the luck of the draw (Efron, 1979)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm


class Spread(NamedTuple):
    """Mean and standard deviation of a figure over resamples."""

    mean: float
    deviation: float


def bootstrap(figure: Callable[[Tensor], float], x: Tensor, resamples: int, seed: int = 0) -> Spread | None:
    """Compute `figure` of `resamples` draws with replacement of as many rows of `x` `(N, ...)`; None for fewer than 2.

    A draw repeats rows, so that the mean of a Frechet distance lies above its value for `x` itself; the deviation is
    what counts.
    """
    if resamples < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    bar = tqdm(range(resamples), desc="resampling", delay=5, leave=False)
    draws = (torch.randint(len(x), (len(x),), generator=generator) for _ in bar)
    found = torch.tensor([figure(x[chosen.to(x.device)]) for chosen in draws], dtype=torch.float64)
    return Spread(float(found.mean()), float(found.std()))
