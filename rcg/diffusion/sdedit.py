"""SDEdit (Meng et al., 2022): a sample goes part of the way back to noise, or is masked in part, and denoised again."""

from __future__ import annotations

import torch
from torch import Tensor

from rcg.config import GuidanceConfig, SamplerConfig
from rcg.core.contracts import MASK, Level, Noise, Process
from rcg.core.rng import FixedFirstDraw, ScaledNoise
from rcg.diffusion.model import GenerativeModel
from rcg.diffusion.wrappers import ProcessWrapper

MIN_RISE = 1e-6
"""Least rise of log(alpha / sigma) by which one level is cleaner than another; less is rounding."""


def sdedit(
    model: GenerativeModel,
    x: Tensor,
    strength: float,
    cond: Tensor | None,
    noise: Noise,
    guidance: GuidanceConfig | None = None,
    sampler: SamplerConfig | None = None,
) -> Tensor:
    """Return samples `(B, *S)` that share with `x` what noise up to `strength` leaves of it.

    For real numbers, x_t = alpha x + sigma eps at the level of that strength, and the model's sampler goes on from
    there through the levels that it would visit from noise. For tokens, round(strength N) of N are masked at random,
    and decoded in round(strength steps) steps.

    Args:
        model: the generative model.
        x: clean data `(B, *S)`.
        strength: share of the way from data (0: `x` itself is returned) to noise (1: all but a new sample).
        cond: the model's condition: `(B, D)` vectors, `(B,)` labels, or None.
        noise: the source of random draws.
        guidance: replaces the configured guidance.
        sampler: replaces the configured sampler; its steps are those of the whole way from noise.
    """
    sampler = sampler or model.config.sampler
    if model.data.vocab is not None:
        known = mask_again(x, strength, noise)
        if not (known == MASK).any():
            return x
        fewer = sampler.with_steps(max(1, round(strength * sampler.steps)))
        return model.sample(cond, noise, guidance=guidance, sampler=fewer, known=known)
    start = level_at(model.process, strength)
    if start.sigma == 0:
        return x
    scaled = ScaledNoise(noise, sampler.temperature)
    x_t = start.alpha * x + start.sigma * scaled.normal(x.shape[1:])
    return model.sample(
        cond,
        FixedFirstDraw(scaled, x_t),
        guidance=guidance,
        sampler=sampler.model_copy(update={"temperature": 1.0}),  # the noise is scaled already
        wrap_process=lambda process: TruncatedProcess(process, start),
    )


def level_at(process: Process, strength: float) -> Level:
    """Return the level at a share `strength` in [0, 1] of the way from clean data to the noisiest level."""
    levels = process.levels(int(process.horizon), "trailing")
    return levels[round((1 - strength) * (len(levels) - 1))]


def mask_again(x: Tensor, strength: float, noise: Noise) -> Tensor:
    """Replace round(strength N) of the N tokens of each of `x` `(B, *S)`, chosen at random, by `MASK`."""
    rank = noise.uniform(x.shape[1:]).flatten(1).argsort(dim=1).argsort(dim=1).to(x.device)
    return torch.where((rank < round(strength * rank.shape[1])).view_as(x), MASK, x)


class TruncatedProcess(ProcessWrapper):
    """A process whose sampling starts at a given level instead of the noisiest."""

    def __init__(self, process: Process, start: Level) -> None:
        """Start the sampling of `process` at `start`."""
        super().__init__(process)
        self.start = start

    def levels(self, steps: int, *spacing: str) -> list[Level]:
        """Return the level where sampling starts, and those of the wrapped process that are cleaner."""
        least = self.start.half_log_snr + MIN_RISE
        cleaner = (level for level in super().levels(steps, *spacing) if level.half_log_snr > least)
        return [self.start, *cleaner]
