"""Ancestral sampling (Ho, Jain, Abbeel, NeurIPS 2020; Nichol and Dhariwal, ICML 2021)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from rcg.core.contracts import Net, Noise, Process, Space
from rcg.core.registry import SAMPLERS
from rcg.diffusion.samplers._level_sampler import LevelSampler


@SAMPLERS.register
class DDPM(LevelSampler):
    """Ancestral sampling over any number of levels; the process says with which variance.

    Steps x_t -> x_s by drawing from q(x_s | x_t, x_0) at the estimate of clean data (Ho et al., eq. 6 and 7).
    """

    name: str = "ddpm"

    def __call__(self, process: Process, net: Net, space: Space, cond: Tensor | None, noise: Noise) -> Tensor:
        """Return `(B, *space.shape)` samples."""
        x = noise.normal(space.shape)
        for level, target in pairwise(self.levels(process)):
            x0, _, share = self.predict(process, net, x, level, cond)
            beta = level.variance_since(target)
            ratio = (target.sigma / level.sigma) ** 2
            x = level.alpha / target.alpha * ratio * x + target.alpha * beta / level.sigma**2 * x0
            if target.sigma > 0:
                # Geometric means of the two bounds beta * ratio and beta: Nichol and Dhariwal, eq. 15.
                x = x + (beta**0.5 * ratio ** ((1 - share) / 2)) * noise.normal(space.shape)
        return x
