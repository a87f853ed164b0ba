"""The bootstrap: how much a metric varies from sample to sample (Efron, 1979)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rcg.core.console import progress


class MeanStd(NamedTuple):
    """Mean and std of a metric, over parts or subsets."""

    mean: float
    std: float


def bootstrap(metric: Callable[[Tensor], float], x: Tensor, resamples: int, seed: int = 0) -> float | None:
    """Resample a metric: `resamples` times, draw as many rows of `x` `(N, ...)` as it has, with replacement.

    Returns:
        The std of the metric over the resamples; None for fewer than 2 resamples, or fewer than 2 rows. Their mean is
        no result: a resample repeats rows, so that of a Frechet distance lies above its value for `x` itself.
    """
    if resamples < 2 or len(x) < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    bar = progress(range(resamples), desc="resampling", unit="resample", total=resamples, delay=5, leave=False)
    draws = (torch.randint(len(x), (len(x),), generator=generator) for _ in bar)
    values = torch.tensor([metric(x[draw.to(x.device)]) for draw in draws], dtype=torch.float64)
    return float(values.std())
