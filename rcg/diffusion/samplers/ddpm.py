"""Ancestral sampling (Ho, Jain, Abbeel, NeurIPS 2020; Nichol and Dhariwal, ICML 2021)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from rcg.core.contracts import Net, Noise, Process, Space
from rcg.core.registry import SAMPLERS
from rcg.diffusion.samplers._timesteps import GridConfig, fresh, predict


class DDPMConfig(GridConfig):
    """Ancestral sampling over any number of levels; the process says with which variance."""

    name: str = "ddpm"


@SAMPLERS.register
class DDPM:
    """Steps x_t -> x_s by drawing from q(x_s | x_t, x_0) at the estimate of clean data (Ho et al., eq. 6 and 7)."""

    Config = DDPMConfig

    def __init__(self, config: DDPMConfig) -> None:
        self.config = config

    def __call__(self, process: Process, net: Net, space: Space, cond: Tensor | None, noise: Noise) -> Tensor:
        """Return `(B, *space.shape)` samples."""
        x = noise.normal(space.shape)
        for now, then in pairwise(process.levels(self.config.steps, self.config.spacing)):
            x0, _, share = predict(process, net, x, now, cond, self.config)
            beta, kept = fresh(now, then), (then.sigma / now.sigma) ** 2
            x = now.alpha / then.alpha * kept * x + then.alpha * beta / now.sigma**2 * x0
            if then.sigma > 0:
                # Geometric means of the two bounds beta * kept and beta: Nichol and Dhariwal, eq. 15.
                x = x + (beta**0.5 * kept ** ((1 - share) / 2)) * noise.normal(space.shape)
        return x
