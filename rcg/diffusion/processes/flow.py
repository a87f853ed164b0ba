"""Flow matching on straight paths (Lipman et al., 2023; Liu et al., 2023): x_t = (1 - t) x_0 + t eps, 0 <= t <= 1."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from rcg.core.contracts import Level
from rcg.core.errors import UserError
from rcg.core.registry import PROCESSES
from rcg.core.rng import draws
from rcg.diffusion.processes._affine import AffineConfig, AffineProcess, Draws


class FlowConfig(AffineConfig):
    """A flow process; the network predicts the velocity eps - x_0."""

    name: str = "flow"
    time: Literal["logit_normal", "uniform"] = "logit_normal"
    """Distribution of training times: logistic normal (Esser et al., 2024, Section 3.1) or uniform."""
    time_mean: float = 0.0
    """Location of the logistic normal; negative is cleaner."""
    time_std: PositiveFloat = 1.0
    """Scale of the logistic normal."""
    shift: PositiveFloat = 1.0
    """Moves times toward noise, t -> s t / (1 + (s - 1) t), in training and sampling (Esser et al., eq. 23)."""


@PROCESSES.register
class Flow(AffineProcess):
    """Moves noise to data on straight lines; the network gets the time as 1000 t, the scale of the Gaussian process."""

    Config = FlowConfig
    horizon = 1000.0

    def __init__(self, config: FlowConfig) -> None:
        super().__init__("velocity", config.loss)
        self.config = config

    def draw(self, x: Tensor) -> Draws:
        """Draw a time and a standard normal noise for each sample of `x` `(B, *S)`."""
        if self.config.time == "uniform":
            t = draws().uniform((len(x),), x.device)
        else:
            t = torch.sigmoid(self.config.time_mean + self.config.time_std * draws().normal((len(x),), x.device))
        return Draws(self.horizon * self._shift(t), draws().normal(x.shape, x.device).to(x.dtype))

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma `(B,)` at times `t` `(B,)` in [0, 1000]."""
        return 1 - t / self.horizon, t / self.horizon

    def levels(self, steps: int, spacing: str) -> list[Level]:
        """Return `steps` levels evenly from pure noise on, shifted, and clean data.

        Raises:
            UserError: another spacing than `trailing` is asked for.
        """
        if spacing != "trailing":
            raise UserError(f"sampler.spacing is {spacing}, but a flow starts at pure noise: use trailing")
        times = self._shift(torch.linspace(1, 0, steps + 1, dtype=torch.float64)).tolist()
        return [Level(self.horizon * t, 1 - t, t) for t in times]

    def matching(self, level: Level) -> Level:
        """Return the level with the ratio of signal to noise of another process's `level`."""
        t = level.sigma / (level.alpha + level.sigma)
        return Level(self.horizon * t, 1 - t, t)

    def _shift(self, t: Tensor) -> Tensor:
        s = self.config.shift
        return s * t / (1 + (s - 1) * t)
