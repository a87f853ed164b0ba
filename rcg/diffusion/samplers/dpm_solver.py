"""DPM-Solver++(2M) (Lu et al., 2022): second order from one evaluation a step, remembering the one before."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from rcg.config import Steps
from rcg.core.contracts import Net, Noise, Process, Space
from rcg.core.registry import SAMPLERS
from rcg.diffusion.samplers._level_sampler import LevelSampler


@SAMPLERS.register
class DPMSolver(LevelSampler):
    """DPM-Solver++(2M).

    Steps x_t -> x_s with the estimate of clean data extrapolated from the last two levels (Algorithm 2).
    """

    name: str = "dpm_solver"
    steps: Steps = 16

    def __call__(self, process: Process, net: Net, space: Space, cond: Tensor | None, noise: Noise) -> Tensor:
        """Return `(B, *space.shape)` samples."""
        x = noise.normal(space.shape)
        before, h_before = x, 0.0
        for level, target in pairwise(self.levels(process)):
            x0 = self.predict(process, net, x, level, cond).x0
            h = target.half_log_snr - level.half_log_snr
            first = h_before == 0 or target.sigma == 0  # the last step, to clean data, is the estimate itself
            ahead = x0 if first else x0 + h / (2 * h_before) * (x0 - before)
            # e^-h, written so that pure noise and clean data need no infinities.
            shrink = target.sigma * level.alpha / (target.alpha * level.sigma)
            x = target.sigma / level.sigma * x + target.alpha * (1 - shrink) * ahead
            before, h_before = x0, h
        return x
