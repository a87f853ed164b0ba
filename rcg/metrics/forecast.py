"""What a metric will probably be at the end of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch

LEAST_POINTS = 3
"""Fewest values that a curve is fitted to: through two of them every curve goes."""
EARLIEST = 1 / 8
"""Values of this first part of the steps are left out: an untrained network gives noise, which follows another law."""


class PowerLaw(NamedTuple):
    """The curve scale * step^-exponent."""

    scale: float
    exponent: float

    @classmethod
    def fit(cls, steps: Sequence[float], values: Sequence[float]) -> Self | None:
        """Fit to values at rising steps, by least squares of logarithms; None where too few of them are positive."""
        last = max(steps, default=0.0)
        points = [(s, v) for s, v in zip(steps, values, strict=True) if s > 0 and v > 0 and s >= EARLIEST * last]
        if len(points) < LEAST_POINTS:
            return None
        log_step, log_value = torch.tensor(points, dtype=torch.float64).log().unbind(1)
        centered = log_step - log_step.mean()
        slope = (centered * log_value).sum() / centered.square().sum()
        return cls(float((log_value.mean() - slope * log_step.mean()).exp()), -float(slope))

    def at(self, step: float) -> float:
        """Return the value at a step."""
        return float(self.scale * step**-self.exponent)
