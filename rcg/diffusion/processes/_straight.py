"""The base of flows on straight paths: x_t = (1 - t) x_0 + t eps, 0 <= t <= 1."""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import PositiveFloat, model_validator
from torch import Tensor

from rcg.core.contracts import Level, Space
from rcg.core.errors import UserError
from rcg.core.rng import draws
from rcg.diffusion.processes._affine import AffineConfig, AffineProcess, Quantity, Times

BASE_DIMENSION = 4096
"""Numbers of the data, 16 x 16 x 16, to which no shift belongs."""


class StraightConfig(AffineConfig):
    """A flow on straight paths; by default its network predicts a velocity."""

    predict: Quantity = "velocity"
    time: Times = "logit_normal"
    shift: PositiveFloat | Literal["dimension"] = 1.0
    """Moves times toward noise, t -> s t / (1 + (s - 1) t), in training and sampling (Esser et al., eq. 23). dimension:
    s is the root of the data's numbers over 4096, for the latents of a rae (Zheng et al., 2025): the more numbers, the
    less does noise hide."""

    def for_data(self, data: Space) -> Self:
        """Return the process with a shift that is a number."""
        if self.shift != "dimension":
            return self
        return self.model_copy(update={"shift": math.sqrt(math.prod(data.shape) / BASE_DIMENSION)})

    @model_validator(mode="after")
    def _refuse_eps(self) -> StraightConfig:
        if self.predict == "eps":
            raise ValueError("a flow needs predict velocity, x0 or v: at pure noise, the noise determines no data")
        return self


class Straight(AffineProcess):
    """Moves noise to data on straight lines; the network gets the time as 1000 t, the scale of the Gaussian process."""

    horizon = 1000.0

    def __init__(self, config: StraightConfig) -> None:
        super().__init__(config)
        assert not isinstance(config.shift, str)
        self.shift = config.shift

    def uniform_times(self, count: int, device: torch.device) -> Tensor:
        """Draw times `(count,)`, uniform before they are shifted."""
        return self.horizon * self._shift(draws().uniform((count,), device))

    def times_at(self, log_ratio: Tensor) -> Tensor:
        """Return the times `(B,)` at which ln(sigma / alpha) is `log_ratio` `(B,)`, shifted."""
        return self.horizon * self._shift(torch.sigmoid(log_ratio))

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
        s = self.shift
        return s * t / (1 + (s - 1) * t)
