"""UniPC (Zhao et al., NeurIPS 2023): each evaluation corrects the step that led to it, at no extra cost."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from pydantic import PositiveInt
from torch import Tensor

from rcg.core.contracts import Level, Net, Noise, Process, Space
from rcg.core.registry import SAMPLERS
from rcg.diffusion.samplers._timesteps import GridConfig, half_log_snr, predict


class UniPCConfig(GridConfig):
    """UniPC of order 2 with B(h) = e^h - 1, on clean data."""

    name: str = "unipc"
    steps: PositiveInt = 16


@SAMPLERS.register
class UniPC:
    """Predicts with the last two estimates of clean data, then corrects with the new one (Algorithms 1 and 2)."""

    Config = UniPCConfig

    def __init__(self, config: UniPCConfig) -> None:
        self.config = config

    def __call__(self, process: Process, net: Net, space: Space, cond: Tensor | None, noise: Noise) -> Tensor:
        """Return `(B, *space.shape)` samples."""
        x = noise.normal(space.shape)
        known: list[tuple[Level, Tensor]] = []  # the last two levels with their estimates of clean data
        start = x  # where the last step began
        for now, then in pairwise(process.levels(self.config.steps, self.config.spacing)):
            x0 = predict(process, net, x, now, cond, self.config).x0
            if known:
                x = _step(start, known, now, x0)
            known = [*known[-1:], (now, x0)]
            start, x = x, _step(x, known, then, None)
        return x


def _step(x: Tensor, known: list[tuple[Level, Tensor]], then: Level, there: Tensor | None) -> Tensor:
    """Go from the last known level to `then`; `there` is the estimate at `then` when it corrects (eq. 3 and 9).

    With `there`, `x` is where that step began, and the step is taken again.
    """
    now, x0 = known[-1]
    shrink = then.sigma * now.alpha / (then.alpha * now.sigma)  # e^-h
    base = then.sigma / now.sigma * x + then.alpha * (1 - shrink) * x0
    h = half_log_snr(then) - half_log_snr(now)
    ratios, slopes = [], []
    if len(known) == 2 and math.isfinite(h):
        ratio = (half_log_snr(known[0][0]) - half_log_snr(now)) / h
        if math.isfinite(ratio):
            ratios, slopes = [ratio], [(known[0][1] - x0) / ratio]
    if there is not None:
        ratios, slopes = [*ratios, 1.0], [*slopes, there - x0]
    if not slopes:
        return base
    weights = _weights(ratios, h) if there is not None and len(ratios) > 1 else [0.5]
    return base + then.alpha * (1 - shrink) * sum(w * slope for w, slope in zip(weights, slopes, strict=True))


def _weights(ratios: list[float], h: float) -> list[float]:
    """Solve eq. 5 for the weights of the slopes, with B = e^-h - 1."""
    b, phi = [], math.expm1(-h) / -h - 1
    for order in range(1, len(ratios) + 1):
        b.append(phi * math.factorial(order) / math.expm1(-h))
        phi = phi / -h - 1 / math.factorial(order + 1)
    powers = torch.tensor(ratios, dtype=torch.float64)
    matrix = torch.stack([powers**order for order in range(len(ratios))])
    solved: list[float] = torch.linalg.solve(matrix, torch.tensor(b, dtype=torch.float64)).tolist()
    return solved
