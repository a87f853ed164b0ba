"""RePaint (Lugmayr et al., CVPR 2022): a model of whole samples generates a part of one, given the rest.

At every evaluation the network sees the known part as noise of that level leaves it (their eq. 8). The known part does
not answer to what is generated beside it; so each stretch of levels is taken several times, with noise added in between
(resampling, Section 4.2), until both fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rcg.config import SamplerConfig
from rcg.core.contracts import Level, Net, Noise, Prediction, Process, Space
from rcg.core.errors import UserError
from rcg.core.rng import FixedFirstDraw
from rcg.diffusion.wrappers import ProcessWrapper


@dataclass(frozen=True)
class Resampling:
    """How known and generated parts are brought together; a sampler's evaluations are multiplied by `times`.

    Attributes:
        times: how often each stretch is taken; 1: no resampling.
        jump_length: levels of a stretch; None: a 25th of the sampler's, the published share (10 of 250).
    """

    times: int = 5
    jump_length: int | None = None

    def __post_init__(self) -> None:
        for value in (self.times, self.jump_length):
            if value is not None and value < 1:
                raise UserError(f"resamplings and their jump length are whole numbers from 1 on, not {value}")


def repaint(
    sampler: SamplerConfig,
    process: Process[Prediction],
    net: Net,
    space: Space,
    cond: Tensor | None,
    noise: Noise,
    known: Tensor,
    resampling: Resampling,
) -> Tensor:
    """Return `(B, *S)` samples that are `known` `(B, *S)` wherever that is not NaN.

    Args:
        sampler: takes the steps.
        process: a Gaussian process or a flow.
        net: the network.
        space: of the samples.
        cond: their condition.
        noise: the source of random draws.
        known: clean data, NaN where it is to be generated.
        resampling: how often, and over how many levels.
    """
    levels = sampler.levels(process)
    steps = len(levels) - 1
    jump = resampling.jump_length or max(1, round(steps / 25))
    x = noise.normal(space.shape)
    for first in range(0, steps, jump):
        stretch = levels[first : first + jump + 1]
        start, end = stretch[0], stretch[-1]
        part = Known(process, known, stretch, noise)
        for time in range(resampling.times):
            if time > 0:
                std = math.sqrt(start.variance_since(end))
                x = start.alpha / end.alpha * x + std * noise.normal(space.shape)
            x = sampler(part, net, space, cond, FixedFirstDraw(noise, x))
    return torch.where(known.isnan(), x, known)


class Known(ProcessWrapper):
    """A process over a stretch of levels, whose network sees known data in its place."""

    def __init__(self, process: Process[Prediction], known: Tensor, stretch: list[Level], noise: Noise) -> None:
        """Show the network `known` `(B, *S)`, NaN where it is unknown, at the levels of `stretch`."""
        super().__init__(process)
        self.known, self.stretch, self.noise = known, stretch, noise

    def levels(self, steps: int, *spacing: str) -> list[Level]:
        """Return the levels of the stretch, whatever the steps."""
        return self.stretch

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Any:
        """Evaluate the network at `x` `(B, *S)` with the known part as noise of `level` leaves it."""
        noised = level.alpha * self.known + level.sigma * self.noise.normal(x.shape[1:])
        return self.process.predict(net, torch.where(self.known.isnan(), x, noised), level, cond)
