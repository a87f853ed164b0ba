"""Ancestral sampling (Ho, Jain, Abbeel, NeurIPS 2020)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

from torch import Tensor

from rcg.contracts import Net, Noise, Process, Space
from rcg.registry import SAMPLERS
from rcg.samplers._grid import GridConfig, fresh, predict


class DDPMConfig(GridConfig):
    """Ancestral sampling over any number of levels."""

    name: str = "ddpm"
    variance: Literal["small", "large"] = "small"
    """Variance of a step: of the posterior q(x_s | x_t, x_0), or beta; the two bounds of Ho et al., Section 3.2."""


@SAMPLERS.register
class DDPM:
    """Steps x_t -> x_s by drawing from q(x_s | x_t, x_0) at the estimate of clean data (eq. 6 and 7)."""

    Config = DDPMConfig

    def __init__(self, config: DDPMConfig) -> None:
        self.config = config

    def __call__(self, process: Process, net: Net, space: Space, cond: Tensor | None, noise: Noise) -> Tensor:
        """Return `(B, *space.shape)` samples."""
        x = noise.normal(space.shape)
        for now, then in pairwise(process.levels(self.config.steps, self.config.spacing)):
            x0 = predict(process, net, x, now, cond, self.config).x0
            beta, kept = fresh(now, then), (then.sigma / now.sigma) ** 2
            mean = now.alpha / then.alpha * kept * x + then.alpha * beta / now.sigma**2 * x0
            variance = beta * kept if self.config.variance == "small" else beta
            x = mean + math.sqrt(variance) * noise.normal(space.shape) if then.sigma > 0 else mean
        return x
