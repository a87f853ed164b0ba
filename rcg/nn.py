"""Layers that several networks share."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from timm.layers import Mlp, RmsNorm, RotaryEmbeddingCat, apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rcg.core.contracts import Space
from rcg.core.rng import draws


def timestep_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Embed times `t` `(B,)` as `(B, width)`: cosines first, then sines, at the frequencies of DiT and the RDM."""
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Sequential):
    """Embeds times as `(B, width)`: sinusoids, two linear layers, and, where there are two times, the second one's.

    The second one's is zero at first, so that a network trained with one time goes on as it was.

    Args:
        sinusoids: width of the sinusoids.
        width: of the embedding.
        times: 1 or 2, as `Interface.times` says.
    """

    def __init__(self, sinusoids: int, width: int, times: int = 1) -> None:
        super().__init__(nn.Linear(sinusoids, width), nn.SiLU(), nn.Linear(width, width))
        self.sinusoids = sinusoids
        self.span = TimeEmbedding(sinusoids, width) if times > 1 else None
        self.forget_span()

    def forget_span(self) -> None:
        """Set the embedding of the second time to zero."""
        if self.span is not None:
            for parameter in self.span[2].parameters():
                nn.init.zeros_(parameter)

    def forward(self, t: Tensor) -> Tensor:
        """Embed times `(B,)`, or pairs of them `(B, 2)`."""
        if self.span is not None:
            return self._embed(t[:, 0]) + self.span(t[:, 1])
        return self._embed(t)

    def _embed(self, t: Tensor) -> Tensor:
        return self[2](self[1](self[0](timestep_embedding(t, self.sinusoids))))


def sincos_positions(grid: int, width: int) -> Tensor:
    """Return fixed positions `(grid * grid, width)`, row-major: the first half encodes the column, the second the row.

    Each half holds sines, then cosines, of frequencies 10000^(-k / (width / 4)) (MAE and DiT).
    """
    omega = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    halves = [axis.reshape(-1, 1) * omega for axis in (column, row)]
    return torch.cat([torch.cat([half.sin(), half.cos()], dim=1) for half in halves], dim=1).float()


def rotary_positions(grid: int, width: int, prefix: int = 0) -> Tensor:
    """Return the table `(prefix + grid * grid, 2 * width)` of 2-D axial rotations (Su et al., 2021; Heo et al., 2024).

    Args:
        grid: rows, and columns, of the tokens.
        width: channels of a head, a multiple of 4; half of them rotate with the row, half with the column.
        prefix: tokens before the grid; they have no position and are not rotated.
    """
    table = RotaryEmbeddingCat(width, in_pixels=False, feat_shape=[grid, grid]).get_embed()
    identity = torch.cat([torch.zeros(prefix, width), torch.ones(prefix, width)], dim=1)  # sine, cosine
    return torch.cat([identity, table])


def dropout(x: Tensor, share: float) -> Tensor:
    """Set a share of `x` `(B, ...)` to zero and scale the rest up; on the CPU the share is exact to 1 / 65536.

    On the CPU torch draws one float per element, which takes longer than the layer itself; 16 bits per element are
    enough. There, what is set to zero depends on a sample's place in the whole batch. On other devices, and in compiled
    networks, it depends on the process as well: torch's fused kernels draw for the samples that they see.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, share)
    bits = draws().bits(x.shape)
    return x * (bits >= round(65536 * share) - 32768).to(x.dtype).div_(1 - share)


class Dropout(nn.Dropout):
    """Dropout in training, by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        """Set a share of `x` to zero, in training."""
        return dropout(x, self.p) if self.training and self.p else x


def attend(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, key_mask: Tensor | None = None) -> Tensor:
    """Compute scaled dot-product attention.

    Args:
        q: queries `(B, outputs, N, d)`.
        k: keys `(B, outputs, M, d)`.
        v: values `(B, outputs, M, d)`.
        dropout_p: share of the attention weights that are set to zero.
        key_mask: `(B, M)`; keys and values are ignored where it is false.
    """
    mask = None if key_mask is None else key_mask[:, None, None]
    if q.device.type == "cpu" and torch.is_grad_enabled():
        # On the CPU the fused kernel's backward pass in bf16 costs several times the plain expression.
        logits = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        weights = logits.softmax(dim=-1).to(v.dtype)
        if dropout_p:
            weights = dropout(weights, dropout_p)
        return weights @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention to a context.

    Args:
        width: channels of a token.
        heads: attention heads, a divisor of `width`.
        context: channels of a context token; None: self-attention.
        bias: whether the maps to queries, keys and values have a bias.
        qk_norm: normalize queries and keys by their root mean square (Dehghani et al., 2023): stable in low precision.
        dropout: dropout of attention weights and of outputs.
        value_residual: mix the values with those of the first block by two learned factors, which start at 1/2 (Zhou et
            al., Value Residual Learning, 2024); `with_values` takes and gives them.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        context: int | None = None,
        bias: bool = True,
        qk_norm: bool = False,
        dropout: float = 0.0,
        value_residual: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = Dropout(dropout)
        if context is None:
            self.qkv = nn.Linear(width, 3 * width, bias=bias)
        else:
            self.q = nn.Linear(width, width, bias=bias)
            self.kv = nn.Linear(context, 2 * width, bias=bias)
        self.norm_q, self.norm_k = (RmsNorm(width // heads) if qk_norm else nn.Identity() for _ in range(2))
        self.proj = nn.Linear(width, width)
        self.mix = nn.Parameter(torch.full((2,), 0.5)) if value_residual else None

    def forward(
        self, x: Tensor, context: Tensor | None = None, rotation: Tensor | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """Return the attended tokens `(B, N, width)`; see `with_values`."""
        return self.with_values(x, context, rotation, seen)[0]

    def with_values(
        self,
        x: Tensor,
        context: Tensor | None = None,
        rotation: Tensor | None = None,
        seen: Tensor | None = None,
        first: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the attended tokens `(B, N, width)` and the values `(B, heads, N, d)` that they were made from.

        Args:
            x: tokens `(B, N, width)`, the queries.
            context: tokens `(B, M, context)` of cross-attention.
            rotation: a table of `rotary_positions`, `(N, 2 d)`, that rotates queries and keys; or `(B, 1, N, 2 d)`.
            seen: key mask `(B, N)`, or `(B, M)` with a context; tokens are ignored where it is false.
            first: the values of the first block, where this one mixes its own with them.
        """
        if context is None:
            q, k, v = self._split(self.qkv(x), 3)
        else:
            (q,) = self._split(self.q(x), 1)
            k, v = self._split(self.kv(context), 2)
        if self.mix is not None and first is not None:
            v = self.mix[0] * v + self.mix[1] * first
        q, k = self.norm_q(q), self.norm_k(k)
        if rotation is not None:
            q, k = apply_rot_embed_cat(q, rotation), apply_rot_embed_cat(k, rotation)
        dropout_p = self.dropout.p if self.training else 0.0
        attended = attend(q.to(v.dtype), k.to(v.dtype), v, dropout_p, seen).transpose(1, 2).flatten(2)
        return self.dropout(self.proj(attended)), v

    def _split(self, x: Tensor, parts: int) -> Tensor:
        """Split `(B, N, parts * width)` into `(parts, B, heads, N, d)`."""
        return x.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


def matrices(*modules: nn.Module, but: Collection[str] = ()) -> list[nn.Parameter]:
    """Return the weights of linear maps and of convolutions over all channels in some modules.

    Args:
        modules: where to look.
        but: names of children whose weights are left out.
    """
    layers = [item for module in modules for item in module.named_modules() if not set(but) & set(item[0].split("."))]
    return [
        layer.get_parameter("weight")
        for _, layer in layers
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]


class TransformerBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)
        self.mlp.drop1 = self.mlp.drop2 = Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Map tokens `(B, N, width)`; where `seen` `(B, N)` is false, no token attends to them."""
        x = x + self.attn(self.norm1(x), seen=seen)
        return x + self.mlp(self.norm2(x))


def checkpointed(module: nn.Module, *inputs: Any, enabled: bool) -> Any:
    """Evaluate a module; if enabled, recompute its activations in the backward pass instead of storing them."""
    if enabled and torch.is_grad_enabled():
        # torch restores its own generators; ours have to draw again what they drew.
        if torch.compiler.is_compiling():
            return checkpoint(module, *inputs, use_reentrant=False)
        return checkpoint(module, *inputs, use_reentrant=False, context_fn=draws().replay)
    return module(*inputs)


class ConditionEmbedding(nn.Module):
    """Embeds a condition as `(B, width)`: a linear map of vectors, or a table of labels; its last row is the null."""

    def __init__(self, space: Space, width: int) -> None:
        super().__init__()
        if space.vocab is None:
            self.embed: nn.Module = nn.Linear(space.shape[0], width)
        else:
            self.embed = nn.Embedding(space.vocab + 1, width)
            nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, cond: Tensor) -> Tensor:
        """Embed `(B, D)` vectors or `(B,)` labels."""
        return self.embed(cond)
