"""Layers that two or more networks use."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.contracts import Space


def timestep_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Embed times `t` `(B,)` as `(B, width)`: cosines first, then sines, at the frequencies of DiT and the RDM."""
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def sincos_positions(grid: int, width: int) -> Tensor:
    """Return fixed positions `(grid * grid, width)`, row-major: the first half encodes the column, the second the row.

    Each half holds sines, then cosines, of frequencies 10000^(-k / (width / 4)) (MAE and DiT).
    """
    omega = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    halves = [axis.reshape(-1, 1) * omega for axis in (column, row)]
    return torch.cat([torch.cat([half.sin(), half.cos()], dim=1) for half in halves], dim=1).float()


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention of `(B, heads, N, d)` tensors; `dropout` is the share of weights set to zero."""
    if q.device.type == "cpu" and torch.is_grad_enabled():
        # On the CPU the fused kernel's backward pass in bf16 costs several times the plain expression.
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1).to(v.dtype)
        return F.dropout(weights, dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


class Attention(nn.Module):
    """Multi-head self-attention, `(B, N, width) -> (B, N, width)`, with dropout of its weights and of its output."""

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the tokens of `x`."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, N, d)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(q, k, v, dropout).transpose(1, 2).reshape(batch, tokens, width)
        return F.dropout(self.proj(mixed), dropout)


class ConditionEmbedding(nn.Module):
    """A condition -> `(B, width)`: a linear map of vectors, a table of labels whose last row is the null label."""

    def __init__(self, space: Space, width: int) -> None:
        super().__init__()
        self.embed: nn.Module
        if space.vocab is None:
            self.embed = nn.Linear(space.shape[0], width)
        else:
            self.embed = nn.Embedding(space.vocab + 1, width)
            nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, cond: Tensor) -> Tensor:
        """Embed `(B, D)` vectors or `(B,)` labels."""
        embedded: Tensor = self.embed(cond)
        return embedded
