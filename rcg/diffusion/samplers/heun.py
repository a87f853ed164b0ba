"""Heun's second-order method on the probability-flow ODE (Karras et al., NeurIPS 2022, Algorithm 1)."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from rcg.core.contracts import Net, Noise, Process, Space
from rcg.core.registry import SAMPLERS
from rcg.diffusion.samplers._timesteps import GridConfig, half_log_snr, predict

FARTHEST = math.log(100)
"""Largest rise of log(alpha / sigma) over which the second evaluation is worth something."""


class HeunConfig(GridConfig):
    """Heun; `steps` evaluations give about half as many levels, two for each but the last."""

    name: str = "heun"


@SAMPLERS.register
class Heun:
    """Integrates d(x / alpha) = eps d(sigma / alpha), in which straight lines are exact for a single data point."""

    Config = HeunConfig

    def __init__(self, config: HeunConfig) -> None:
        self.config = config

    def __call__(self, process: Process, net: Net, space: Space, cond: Tensor | None, noise: Noise) -> Tensor:
        """Return `(B, *space.shape)` samples."""
        x = noise.normal(space.shape)
        for now, then in pairwise(process.levels((self.config.steps + 1) // 2, self.config.spacing)):
            x0, eps, _ = predict(process, net, x, now, cond, self.config)
            euler = then.alpha * x0 + then.sigma * eps
            # An average over sigma / alpha means nothing where that ratio falls to a fraction, as it does on the way
            # from all but pure noise and to clean data: errors of `ahead` would be multiplied by what it was before.
            if half_log_snr(then) - half_log_snr(now) > FARTHEST:
                x = euler
                continue
            ahead = predict(process, net, euler, then, cond, self.config).eps
            run = then.sigma / then.alpha - now.sigma / now.alpha
            x = then.alpha * (x / now.alpha + run * (eps + ahead) / 2)
        return x
