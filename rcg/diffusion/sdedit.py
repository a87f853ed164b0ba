"""A sample taken part of the way back to noise, or masked in part, and denoised again (SDEdit; Meng et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rcg.config import GuidanceConfig
from rcg.core.contracts import MASK, Level, Net, Noise, Prediction, Process
from rcg.core.rng import Scaled
from rcg.diffusion.model import GenerativeModel
from rcg.diffusion.samplers._timesteps import half_log_snr

ROUNDING = 1e-6
"""Least rise of log(alpha / sigma) by which one level is cleaner than another."""


def second_pass(
    model: GenerativeModel,
    x: Tensor,
    t0: float,
    cond: Tensor | None,
    noise: Noise,
    guidance: GuidanceConfig | None = None,
    steps: int | None = None,
) -> Tensor:
    """Return samples `(B, *S)` that share with `x` what noise up to `t0` leaves of it.

    Of real numbers, x_t = alpha x + sigma eps at the level t0, and the model's sampler walks from there through the
    levels that it would visit on its way from noise. Of tokens, round(t0 N) of N are masked at random, and decoded in
    round(t0 steps) steps.

    Args:
        model: the generative model.
        x: clean data `(B, *S)`.
        t0: share of the way from data (0: `x` itself is returned) to noise (1: all but a fresh sample).
        cond: what the model is told, `(B, D)` vectors, `(B,)` labels, or None.
        noise: where the draws come from.
        guidance: replaces the configured guidance.
        steps: network evaluations of a whole walk; none: as configured.
    """
    sampler = model.config.sampler
    if model.data.vocab is not None:
        known = masked_again(x, t0, noise)
        if not (known == MASK).any():
            return x
        return model.sample(cond, noise, guidance, max(1, round(t0 * (steps or sampler.steps))), known=known)
    start = level(model.process, t0)
    if start.sigma == 0:
        return x
    scaled = Scaled(noise, sampler.temperature)
    begin = Begun(scaled, start.alpha * x + start.sigma * scaled.normal(x.shape[1:]))
    plain = sampler.model_copy(update={"temperature": 1.0})
    return model.sample(cond, begin, guidance, steps, sampler=plain, steer=lambda process: Late(process, start))


def level(process: Process, t0: float) -> Level:
    """Return the level at a share `t0` in [0, 1] of the way from clean data to the noisiest level."""
    every = process.levels(int(process.horizon), "trailing")
    return every[round((1 - t0) * (len(every) - 1))]


def masked_again(x: Tensor, t0: float, noise: Noise) -> Tensor:
    """Replace round(t0 N) of the N tokens of each of `x` `(B, *S)`, chosen at random, by `MASK`."""
    rank = noise.uniform(x.shape[1:]).flatten(1).argsort(dim=1).argsort(dim=1).to(x.device)
    return torch.where((rank < round(t0 * rank.shape[1])).view_as(x), MASK, x)


class Late:
    """A process whose walks begin at a given level instead of the noisiest."""

    def __init__(self, process: Process, start: Level) -> None:
        """Let the walks of `process` begin at `start`."""
        self.process, self.start = process, start
        self.heads, self.horizon = process.heads, process.horizon

    def loss(self, net: Net, x: Tensor, cond: Tensor | None) -> dict[str, Tensor]:
        """Return the losses of the process itself."""
        return self.process.loss(net, x, cond)

    def levels(self, steps: int, spacing: str) -> list[Level]:
        """Return the level where walks begin, and those of the process itself that are cleaner."""
        begun = half_log_snr(self.start) + ROUNDING
        return [self.start, *(now for now in self.process.levels(steps, spacing) if half_log_snr(now) > begun)]

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Prediction:
        """Evaluate the network as the process itself does."""
        return self.process.predict(net, x, level, cond)


class Begun:
    """A noise source whose first draw is given: there samplers begin their walk."""

    def __init__(self, noise: Noise, first: Tensor) -> None:
        """Give `first` `(B, *S)`, then the draws of `noise`."""
        self.noise, self.first = noise, [first]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return what was given, once, then `(B, *shape)` standard normal draws."""
        return self.first.pop() if self.first else self.noise.normal(shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Return `(B, *shape)` uniform draws from [0, 1)."""
        return self.noise.uniform(shape)
