"""DPM-Solver++(2M) (Lu et al., 2022): second order from one evaluation a step, remembering the one before."""

from __future__ import annotations

from itertools import pairwise

from pydantic import PositiveInt
from torch import Tensor

from rcg.core.contracts import Net, Noise, Process, Space
from rcg.core.registry import SAMPLERS
from rcg.diffusion.samplers._timesteps import GridConfig, half_log_snr, predict


class DPMSolverConfig(GridConfig):
    """DPM-Solver++(2M)."""

    name: str = "dpm_solver"
    steps: PositiveInt = 16


@SAMPLERS.register
class DPMSolver:
    """Steps x_t -> x_s with the estimate of clean data extrapolated from the last two levels (Algorithm 2)."""

    Config = DPMSolverConfig

    def __init__(self, config: DPMSolverConfig) -> None:
        self.config = config

    def __call__(self, process: Process, net: Net, space: Space, cond: Tensor | None, noise: Noise) -> Tensor:
        """Return `(B, *space.shape)` samples."""
        x = noise.normal(space.shape)
        before, h_before = x, 0.0
        for now, then in pairwise(process.levels(self.config.steps, self.config.spacing)):
            x0 = predict(process, net, x, now, cond, self.config).x0
            h = half_log_snr(then) - half_log_snr(now)
            first = h_before == 0 or then.sigma == 0  # the last step, to clean data, is the estimate itself
            ahead = x0 if first else x0 + h / (2 * h_before) * (x0 - before)
            # e^-h, written so that pure noise and clean data need no infinities.
            shrink = then.sigma * now.alpha / (then.alpha * now.sigma)
            x = then.sigma / now.sigma * x + then.alpha * (1 - shrink) * ahead
            before, h_before = x0, h
        return x
