"""Heun's second-order method on the probability-flow ODE (Karras et al., NeurIPS 2022, Algorithm 1)."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from rcg.core.contracts import Level, Net, Noise, Process, Space
from rcg.core.registry import SAMPLERS
from rcg.diffusion.samplers._level_sampler import LevelSampler

FARTHEST = math.log(100)
"""Largest rise of log(alpha / sigma) over which the second evaluation is worth something."""


@SAMPLERS.register
class Heun(LevelSampler):
    """Heun; `steps` evaluations give about half as many levels, two for each but the last.

    Integrates d(x / alpha) = eps d(sigma / alpha), in which straight lines are exact for a single data point.
    """

    name: str = "heun"

    def levels(self, process: Process) -> list[Level]:
        """Return the levels that the sampler visits; each but the last is evaluated twice."""
        return process.levels((self.steps + 1) // 2, self.spacing)

    def __call__(self, process: Process, net: Net, space: Space, cond: Tensor | None, noise: Noise) -> Tensor:
        """Return `(B, *space.shape)` samples."""
        x = noise.normal(space.shape)
        for level, target in pairwise(self.levels(process)):
            x0, eps, _ = self.predict(process, net, x, level, cond)
            euler = target.alpha * x0 + target.sigma * eps
            # An average over sigma / alpha means nothing where that ratio falls to a fraction, as it does on the way
            # from all but pure noise and to clean data: errors of `ahead` would be multiplied by what it was before.
            if target.half_log_snr - level.half_log_snr > FARTHEST:
                x = euler
                continue
            ahead = self.predict(process, net, euler, target, cond).eps
            run = target.sigma / target.alpha - level.sigma / level.alpha
            x = target.alpha * (x / level.alpha + run * (eps + ahead) / 2)
        return x
