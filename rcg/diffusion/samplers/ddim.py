"""DDIM (Song, Meng, Ermon, ICLR 2021): deterministic at eta 0, ancestral at eta 1.

On a flow, eta 0 is Euler's method; on a mean flow its steps are exact, however long.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor

from rcg.config import Fraction
from rcg.core.contracts import Net, Noise, Process, Space
from rcg.core.registry import SAMPLERS
from rcg.diffusion.samplers._level_sampler import LevelSampler


@SAMPLERS.register
class DDIM(LevelSampler):
    """DDIM.

    Steps x_t -> x_s through the estimate of clean data (eq. 12, with sigma of eq. 16).
    """

    name: str = "ddim"
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of fresh noise: 0 deterministic, 1 as much as ancestral sampling."""
    boost: Fraction = 0.0
    """Share of the times, at the end of sampling, in which eta is 1, which makes deterministic samples sharper (quality
    boosting: Asyrp, Kwon et al., ICLR 2023)."""

    def __call__(self, process: Process, net: Net, space: Space, cond: Tensor | None, noise: Noise) -> Tensor:
        """Return `(B, *space.shape)` samples."""
        x = noise.normal(space.shape)
        for level, target in pairwise(self.levels(process)):
            eta = 1.0 if level.t / process.horizon < self.boost else self.eta
            # Without fresh noise the step is straight, and its direction may be that of all of it.
            start = level._replace(end=target) if eta == 0 else level
            x0, eps, _ = self.predict(process, net, x, start, cond)
            std = eta * target.sigma / level.sigma * math.sqrt(level.variance_since(target))
            x = target.alpha * x0 + math.sqrt(max(target.sigma**2 - std**2, 0.0)) * eps
            if std > 0:
                x = x + std * noise.normal(space.shape)
        return x
