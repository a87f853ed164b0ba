"""Ancestral sampling (Ho, Jain, Abbeel, NeurIPS 2020)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from rcg.contracts import DiscreteProcess, Net, Noise, Space
from rcg.registry import SAMPLERS
from rcg.samplers._grid import GridConfig, transitions


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

    def __call__(self, process: DiscreteProcess, net: Net, space: Space, cond: Tensor | None, noise: Noise) -> Tensor:
        """Return `(B, *space.shape)` samples."""
        x = noise.normal(space.shape)
        for t, a_t, a_s in transitions(process, self.config):
            x0 = process.predict(net, x, t, cond).x0
            if self.config.clip:
                x0 = x0.clamp(-1, 1)
            beta = 1 - a_t / a_s
            mean = (math.sqrt(a_s) * beta * x0 + math.sqrt(1 - beta) * (1 - a_s) * x) / (1 - a_t)
            variance = beta * (1 - a_s) / (1 - a_t) if self.config.variance == "small" else beta
            x = mean + math.sqrt(variance) * noise.normal(space.shape) if a_s < 1 else mean
        return x
