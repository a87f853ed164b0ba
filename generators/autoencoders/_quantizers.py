"""Quantizers: a codebook searched by distance, and finite scalar quantization, which needs no codebook."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import Config, Fraction, Width
from rcg.core.rng import draws
from rcg.distributed.launch import gather

CHUNK = 8192
"""Vectors compared with the whole codebook at a time."""


class NearestConfig(Config):
    """A codebook whose nearest entry replaces a vector (VQ-VAE, van den Oord et al., NeurIPS 2017)."""

    name: Literal["nearest"] = "nearest"
    codes: Width | None = None
    """Entries of the codebook; null: 1024 as published, below 64 px 256, below 32 px 64: a generator learns a smaller
    vocabulary from fewer images."""
    update: Literal["ema", "gradient"] = "ema"
    """How the codebook learns: by moving averages of the vectors assigned to its entries, or by gradients."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Decay of those averages, and of the use counts of entries."""
    commitment: PositiveFloat = 0.25
    """Weight of the loss that pulls the encoder's vectors to the codebook."""
    revive: Fraction = 0.03
    """Entries used less than this share of an even use are moved onto vectors of the batch; 0: never."""


class FSQConfig(Config):
    """Finite scalar quantization (Mentzer et al., ICLR 2024): each channel is rounded to a few levels."""

    name: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=2)], ...] = (8, 5, 5, 5)
    """Levels of each channel; their product is the number of codes."""


class Nearest(nn.Module):
    """Replaces vectors `(M, C)` by the nearest of K entries; gradients pass straight through.

    The codebook starts on vectors of the first batch, all entries being dead then.
    """

    counts: Tensor  # (K,) uses of each entry, averaged over batches
    sums: Tensor  # (K, C) sum of the vectors assigned to each entry, averaged likewise

    def __init__(self, config: NearestConfig, channels: int) -> None:
        super().__init__()
        assert config.codes is not None
        self.config, self.vocab = config, config.codes
        codebook = torch.randn(config.codes, channels) / math.sqrt(channels)
        if config.update == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("sums", torch.zeros(config.codes, channels))
        self.register_buffer("counts", torch.zeros(config.codes))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return quantized vectors `(M, C)`, codes `(M,)` and losses; in training the codebook follows."""
        if self.training:
            self._revive(z.detach())
        codes = self.codes(z.detach())
        quantized = self.lookup(codes)
        losses = {"commitment": self.config.commitment * F.mse_loss(z, quantized.detach())}
        if self.config.update == "gradient":
            losses["codebook"] = F.mse_loss(quantized, z.detach())
        if self.training:
            self._follow(z.detach(), codes)
        return z + (quantized - z).detach(), codes, losses

    def codes(self, z: Tensor) -> Tensor:
        """Return the codes `(M,)` of the entries nearest to `z` `(M, C)`."""
        # |z - e|^2 without |z|^2, which is the same for all entries.
        norms = self.codebook.square().sum(1)
        return torch.cat([(norms - 2 * part @ self.codebook.T).argmin(1) for part in z.split(CHUNK)])

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the entries `(*codes.shape, C)`."""
        return F.embedding(codes, self.codebook)

    @torch.no_grad()
    def _revive(self, z: Tensor) -> None:
        """Move dead entries onto random vectors of the batch of all processes, with an even share of the use."""
        even = self.counts.mean()
        dead = (self.counts < self.config.revive * even) | (even == 0)
        z = gather(z)
        order = draws().order(len(z), z.device).repeat(-(-self.vocab // len(z)))[: self.vocab]
        fresh = z[order]
        self.codebook.data.copy_(torch.where(dead[:, None], fresh, self.codebook))
        self.counts.copy_(torch.where(dead, even, self.counts))
        if self.config.update == "ema":
            self.sums.copy_(torch.where(dead[:, None], fresh * even, self.sums))

    @torch.no_grad()
    def _follow(self, z: Tensor, codes: Tensor) -> None:
        """Average counts and sums over batches (VQ-VAE, Appendix A.1); entries are their quotient."""
        z, codes = gather(z), gather(codes)
        # The first batch counts in full: there is nothing before it to average with.
        weight = torch.where(self.counts.any(), 1 - self.config.decay, 1.0)
        used = torch.bincount(codes, minlength=self.vocab).to(z.dtype)
        self.counts.lerp_(used, weight)
        if self.config.update == "ema":
            self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, codes, z), weight)
            used_before = self.counts > 0
            means = self.sums / self.counts.clamp(min=1e-12)[:, None]
            self.codebook.copy_(torch.where(used_before[:, None], means, self.codebook))


class FSQ(nn.Module):
    """Rounds each channel of vectors `(M, C)` to its number of levels; gradients pass straight through.

    Codes count in mixed radix, the first channel fastest; quantized channels lie in [-1, 1].
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FSQConfig) -> None:
        super().__init__()
        self.vocab = math.prod(config.levels)
        levels = torch.tensor(config.levels)
        self.register_buffer("levels", levels, persistent=False)
        basis = torch.cat([torch.ones(1, dtype=torch.int64), levels.cumprod(0)[:-1]])
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return quantized vectors `(M, C)`, codes `(M,)` and no losses."""
        bounded = self.bound(z)
        rounded = bounded + (bounded.round() - bounded).detach()
        half = self.levels // 2
        codes = ((rounded.detach() + half).long() * self.basis).sum(1)
        return rounded / half, codes, {}

    def bound(self, z: Tensor) -> Tensor:
        """Squash `z` so that rounding gives the configured number of levels (Section 3.1); 0 stays 0.

        The range is a little wider than the outermost levels, so that these are reached at finite z.
        """
        reach = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(z + torch.atanh(offset / reach)) * reach - offset

    def codes(self, z: Tensor) -> Tensor:
        """Return the codes `(M,)` of `z` `(M, C)`."""
        return self(z)[1]

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the quantized vectors `(*codes.shape, C)`."""
        half = self.levels // 2
        return (codes[..., None] // self.basis % self.levels - half) / half


def build_quantizer(config: NearestConfig | FSQConfig, channels: int) -> Nearest | FSQ:
    """Build the quantizer of `config` for vectors of `channels`."""
    return FSQ(config) if isinstance(config, FSQConfig) else Nearest(config, channels)
