"""UniPC (Zhao et al., NeurIPS 2023): each evaluation corrects the step that led to it, at no extra cost."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from rcg.config import Steps
from rcg.core.contracts import Level, Net, Noise, Process, Space
from rcg.core.registry import SAMPLERS
from rcg.diffusion.samplers._level_sampler import LevelSampler


@SAMPLERS.register
class UniPC(LevelSampler):
    """UniPC of order 2 with B(h) = e^h - 1, on clean data.

    Predicts with the last two estimates of clean data, then corrects with the new one (Algorithms 1 and 2).
    """

    name: str = "unipc"
    steps: Steps = 16

    def __call__(self, process: Process, net: Net, space: Space, cond: Tensor | None, noise: Noise) -> Tensor:
        """Return `(B, *space.shape)` samples."""
        x = noise.normal(space.shape)
        history: list[tuple[Level, Tensor]] = []  # the last two levels with their estimates of clean data
        start = x  # where the last step began
        for level, target in pairwise(self.levels(process)):
            x0 = self.predict(process, net, x, level, cond).x0
            if history:
                x = _step(start, history, level, x0)
            history = [*history[-1:], (level, x0)]
            start, x = x, _step(x, history, target, None)
        return x


def _step(x: Tensor, history: list[tuple[Level, Tensor]], target: Level, corrected: Tensor | None) -> Tensor:
    """Go from the last known level to `target`; `corrected` is the estimate at `target` when it corrects (eq. 3 and 9).

    With `corrected`, `x` is where that step began, and the step is taken again.
    """
    level, x0 = history[-1]
    shrink = target.sigma * level.alpha / (target.alpha * level.sigma)  # e^-h
    base = target.sigma / level.sigma * x + target.alpha * (1 - shrink) * x0
    h = target.half_log_snr - level.half_log_snr
    ratios, slopes = [], []
    if len(history) == 2 and math.isfinite(h):
        previous, previous_x0 = history[0]
        ratio = (previous.half_log_snr - level.half_log_snr) / h
        if math.isfinite(ratio):
            ratios, slopes = [ratio], [(previous_x0 - x0) / ratio]
    if corrected is not None:
        ratios, slopes = [*ratios, 1.0], [*slopes, corrected - x0]
    if not slopes:
        return base
    weights = _weights(ratios, h) if corrected is not None and len(ratios) > 1 else [0.5]
    return base + target.alpha * (1 - shrink) * sum(w * slope for w, slope in zip(weights, slopes, strict=True))


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
