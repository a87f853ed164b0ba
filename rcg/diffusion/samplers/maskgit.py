"""Parallel decoding of masked tokens (MaskGIT: Chang et al., CVPR 2022, Section 3.2)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from rcg.config import SamplerConfig, Steps
from rcg.core.contracts import MASK, Level, Net, Noise, Process, Space
from rcg.core.registry import SAMPLERS


@SAMPLERS.register
class MaskGIT(SamplerConfig):
    """Parallel decoding; the published steps and temperatures are 20 with 6 for MAGE-B, and 20 with 11 for MAGE-L.

    Draws all masked tokens at every step, keeps the most confident ones, and masks the others again.
    """

    name: str = "maskgit"
    steps: Steps = 20
    temperature: PositiveFloat = 1.0
    """Temperature of the distributions that tokens are drawn from."""
    choice_temperature: Annotated[float, Field(ge=0)] = 6.0
    """Scale of the Gumbel noise on the confidence that decides which tokens stay; it falls to zero linearly."""

    discrete: ClassVar[bool] = True

    def levels(self, process: Process[Tensor]) -> list[Level]:
        """Return the levels that the sampler visits, noisiest first, and the one at which it ends."""
        return process.levels(self.steps)

    def __call__(
        self,
        process: Process[Tensor],
        net: Net,
        space: Space,
        cond: Tensor | None,
        noise: Noise,
        known: Tensor | None = None,
    ) -> Tensor:
        """Return `(B, *space.shape)` tokens; those of `known` `(B, *space.shape)` that are not `MASK` stay."""
        uniform = noise.uniform((self.steps, 2, *space.shape))  # all draws at once: no step has to wait for them
        x = torch.full_like(uniform[:, 0, 0], MASK, dtype=torch.long) if known is None else known
        filled, count = x, (x == MASK).flatten(1).sum(1)
        for step, (level, target) in enumerate(pairwise(self.levels(process))):
            logits = process.predict(net, x, level, cond).movedim(1, -1) / self.temperature  # (B, *S, K)
            log_p = logits.log_softmax(-1)
            filled = torch.where(x == MASK, draw(log_p, uniform[:, step, 0]), x)
            confidence = log_p.gather(-1, filled[..., None])[..., 0]
            noise_scale = self.choice_temperature * target.t / process.horizon
            confidence = confidence + noise_scale * gumbel(uniform[:, step, 1])
            x = torch.where(mask_again(confidence, x == MASK, count * target.sigma), MASK, filled)
        return filled


def draw(log_p: Tensor, uniform: Tensor) -> Tensor:
    """Draw symbols `(*, )` from log-probabilities `(*, K)` by inverting their cumulative sums at `uniform` `(*, )`."""
    total = log_p.exp().cumsum(-1)
    # Rounding leaves the last sum near 1, not at it.
    return torch.searchsorted(total, uniform[..., None] * total[..., -1:], right=True)[..., 0].clamp(
        max=total.shape[-1] - 1
    )


def gumbel(uniform: Tensor) -> Tensor:
    """Turn uniform draws from [0, 1) into standard Gumbel draws."""
    return -(-uniform.clamp(min=torch.finfo(uniform.dtype).tiny).log()).log()


def mask_again(confidence: Tensor, unknown: Tensor, count: Tensor) -> Tensor:
    """Return which tokens `(B, *S)` are masked again: floor(count) `(B,)` of the unknown ones, the least confident.

    Each step keeps at least one token and, until sampling ends, leaves at least one to be drawn (as published).
    """
    left = unknown.flatten(1).sum(1)
    number = count.floor().minimum(left - 1).clamp(min=1).minimum(left)
    rank = confidence.masked_fill(~unknown, torch.inf).flatten(1).argsort(dim=1).argsort(dim=1)
    return (rank < number[:, None]).view_as(unknown)
