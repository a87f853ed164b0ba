"""The masked-token process (MaskGIT: Chang et al., CVPR 2022; MAGE: Li et al., CVPR 2023).

At time t in [0, 1] the share sin(pi t / 2) of all tokens is masked, which is MaskGIT's cosine schedule read backwards.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from rcg.config import Fraction, ProcessConfig
from rcg.core.contracts import MASK, Level, Net
from rcg.core.registry import PROCESSES
from rcg.core.rng import draws


class MaskedConfig(ProcessConfig):
    """The share of tokens that are masked in training: a truncated normal distribution (MAGE, Section 3.1)."""

    name: str = "masked"
    ratio_mean: Fraction = 0.75
    """Mean of the normal distribution; as published for RCG."""
    ratio_std: PositiveFloat = 0.25
    """Its std."""
    ratio_min: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Smallest share of masked tokens; the largest is 1."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target probability that is spread over all tokens."""

    discrete: ClassVar[bool] = True

    def fewest_masked(self, tokens: int) -> int:
        """Return the smallest number of masked tokens among `tokens`."""
        return math.ceil(self.ratio_min * tokens)


class MaskDraws(NamedTuple):
    """The random part of one training step."""

    share: Tensor  # (B,) of tokens to mask
    order: Tensor  # (B, *S) in which tokens are masked, the lowest first
    shares: Tensor | None = None  # (total,) those of the whole batch, where these samples are a part of it


@PROCESSES.register
class Masked:
    """Replaces tokens by `MASK`; the network predicts which they were."""

    Config = MaskedConfig
    outputs = 1
    horizon = 1.0

    def __init__(self, config: MaskedConfig) -> None:
        self.config = config

    def draw(self, x: Tensor) -> MaskDraws:
        """Draw a share and an order for each sample of `x` `(B, *S)`."""
        mean, std, least = self.config.ratio_mean, self.config.ratio_std, self.config.ratio_min
        low, high = (NormalDist(mean, std).cdf(bound) for bound in (least, 1.0))
        # By the inverse of the distribution function: trunc_normal_ rejects draws, for which it waits for the device.
        quantile = low + (high - low) * draws().uniform_of_all((len(x),), x.device)
        shares = (mean + std * torch.special.ndtri(quantile)).clamp(least, 1.0)
        return MaskDraws(draws().own(shares), draws().uniform(x.shape, x.device), shares)

    def corrupt(self, x: Tensor, drawn: MaskDraws) -> Tensor:
        """Mask the ceil(share * N) first tokens of `x` `(B, *S)`, N of them in all."""
        count = self._count(drawn.share, x[0].numel())
        # Ranks instead of a threshold: equal draws cannot change how many tokens are masked.
        rank = drawn.order.flatten(1).argsort(dim=1).argsort(dim=1)
        return torch.where((rank < count[:, None]).view_as(x), MASK, x)

    def loss(self, net: Net, x: Tensor, cond: Tensor | None) -> dict[str, Tensor]:
        """Cross-entropy with smoothed labels; its mean over all parts of a batch is that over its masked tokens."""
        drawn = self.draw(x)
        corrupted = self.corrupt(x, drawn)
        logits = net(corrupted, self.horizon * torch.asin(drawn.share) * 2 / math.pi, cond)[:, 0].float()
        rows = logits.movedim(1, -1).flatten(0, -2)  # (B N, K)
        error = F.cross_entropy(rows, x.flatten(), reduction="none", label_smoothing=self.config.label_smoothing)
        masked = (corrupted == MASK).flatten()
        # Not those of this part: its mean would count them differently than others.
        shares = drawn.share if drawn.shares is None else drawn.shares
        expected = len(x) * self._count(shares, x[0].numel()).mean()
        return {"cross_entropy": (error * masked).sum() / expected.clamp(min=1e-8)}

    def levels(self, steps: int) -> list[Level]:
        """Return `steps` evenly spaced levels from all masked on, and the one without masks."""
        return [self._level(1 - step / steps) for step in range(steps + 1)]

    def matching(self, level: Level) -> Level:
        """Return the level itself: all processes of tokens have the same."""
        return level

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Tensor:
        """Return the logits `(B, K, *S)` of the tokens where `x` `(B, *S)` is `MASK`, float32."""
        times = torch.full((len(x),), level.t, device=x.device)
        return self.read(net(x, times, cond), x, times)

    def read(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Read the logits `(B, K, *S)` off an output `(B, outputs, K, *S)` at `x` `(B, *S)`, whatever the times."""
        return output[:, 0].float()

    def _count(self, share: Tensor, tokens: int) -> Tensor:
        """Return how many of so many tokens are masked at shares `(B,)`."""
        return (share * tokens).ceil().clamp(min=self.config.fewest_masked(tokens))

    def _level(self, t: float) -> Level:
        masked = math.sin(math.pi / 2 * t)
        return Level(self.horizon * t, 1 - masked, masked)
