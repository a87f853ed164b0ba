"""DDIM (Song, Meng, Ermon, ICLR 2021): deterministic at eta 0, ancestral at eta 1."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor

from rcg.contracts import DiscreteProcess, Net, Noise, Space
from rcg.registry import SAMPLERS
from rcg.samplers._grid import GridConfig, transitions


class DDIMConfig(GridConfig):
    """DDIM."""

    name: str = "ddim"
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of fresh noise: 0 deterministic, 1 as much as ancestral sampling."""


@SAMPLERS.register
class DDIM:
    """Steps x_t -> x_s through the estimate of clean data (eq. 12, with sigma of eq. 16)."""

    Config = DDIMConfig

    def __init__(self, config: DDIMConfig) -> None:
        self.config = config

    def __call__(self, process: DiscreteProcess, net: Net, space: Space, cond: Tensor | None, noise: Noise) -> Tensor:
        """Return `(B, *space.shape)` samples."""
        x = noise.normal(space.shape)
        for t, a_t, a_s in transitions(process, self.config):
            x0, eps = process.predict(net, x, t, cond)
            if self.config.clip:
                x0 = x0.clamp(-1, 1)
                eps = (x - math.sqrt(a_t) * x0) / math.sqrt(1 - a_t)
            std = self.config.eta * math.sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s))
            x = math.sqrt(a_s) * x0 + math.sqrt(max(1 - a_s - std**2, 0.0)) * eps
            if std > 0:
                x = x + std * noise.normal(space.shape)
        return x
