"""The U-Net of latent diffusion: a spatial transformer listens to the condition (Rombach et al., CVPR 2022)."""

from __future__ import annotations

from typing import Annotated

from pydantic import PositiveInt, SerializeAsAny
from rcg.generators._unet import (
    Condition,
    Downsample,
    GroupNorm,
    Parts,
    Residual,
    UNet,
    UNetConfig,
    Upsample,
    heads_for,
    map_of,
    time_embedding,
    tokens_of,
    zero,
)
from timm.layers import GluMlp
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import ProcessConfig, SamplerConfig, component, unsaid
from rcg.core.contracts import Space
from rcg.core.registry import GENERATORS, PROCESSES, SAMPLERS
from rcg.nn import Attention, ConditionEmbedding, timestep_embedding

LABEL_WIDTH = 512
"""Channels of the token of a class."""


class LDMConfig(UNetConfig):
    """The LDM U-Net; LDM-8 was published with a width of 256 and heads of 32 channels."""

    name: str = "ldm"
    multipliers: tuple[PositiveInt, ...] | None = (1, 2, 4)
    head_width: PositiveInt = 32
    transformer_depth: PositiveInt = 1
    """Blocks of a spatial transformer."""
    context_tokens: PositiveInt = 1
    """Tokens made from the condition; the one token of a representation is the representation itself."""
    process: Annotated[SerializeAsAny[ProcessConfig], component(PROCESSES, name="gaussian", schedule="sqrt_linear")] = (
        unsaid()
    )
    """How data is corrupted and what the network predicts; as published: eps, sqrt_linear."""
    sampler: Annotated[SerializeAsAny[SamplerConfig], component(SAMPLERS, name="ddim", steps=50, eta=1.0)] = unsaid()
    """How samples are drawn; as published: ddim at eta 1 (there with 200 steps)."""


class Context(nn.Module):
    """A condition -> tokens `(B, M, width)` to attend to."""

    def __init__(self, space: Space, tokens: int) -> None:
        super().__init__()
        self.tokens, self.width = tokens, space.shape[0] if space.vocab is None else LABEL_WIDTH
        alone = tokens == 1 and space.vocab is None
        self.embed: nn.Module = nn.Identity() if alone else ConditionEmbedding(space, tokens * self.width)

    def forward(self, cond: Tensor) -> Tensor:
        """Turn `(B, D)` vectors or `(B,)` labels into tokens."""
        return self.embed(cond).unflatten(1, (self.tokens, self.width))


class TransformerBlock(nn.Module):
    """Tokens attend to each other, then to the context, then each passes a gated MLP."""

    def __init__(self, width: int, heads: int, context: int | None) -> None:
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, bias=False)
        self.norm2 = nn.LayerNorm(width) if context else None
        self.cross = Attention(width, heads, context=context, bias=False) if context else None
        self.mlp = GluMlp(width, 8 * width, act_layer=nn.GELU)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Map tokens `(B, N, width)` given a context `(B, M, D)`."""
        x = x + self.attn(self.norm1(x))
        if self.cross is not None and self.norm2 is not None and context is not None:
            x = x + self.cross(self.norm2(x), context)
        return x + self.mlp(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer over the positions of a map; it starts as the identity."""

    def __init__(self, channels: int, groups: int, heads: int, depth: int, context: int | None) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.input = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(TransformerBlock(channels, heads, context) for _ in range(depth))
        self.output = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        """Map `(B, C, h, w)`."""
        h = self.input(tokens_of(self.norm(x)))
        for block in self.blocks:
            h = block(h, c.cond)
        return x + map_of(self.output(h), x)


@GENERATORS.register
class LDM(nn.Module):
    """Denoises images or latents `(B, C, h, w)` at integer times `(B,)`; output `(B, heads, C, h, w)`.

    Raises:
        UserError: the side cannot be halved as often as there are levels, or the heads do not divide the channels.
    """

    Config = LDMConfig

    def __init__(self, config: LDMConfig, data: Space, cond: Space | None, heads: int) -> None:
        super().__init__()
        self.width, self.grad_checkpointing = config.width, config.grad_checkpointing
        self.time = time_embedding(config.width)
        self.cond = Context(cond, config.context_tokens) if cond else None
        parts = _parts(config, self.cond.width if self.cond else None)
        self.unet = UNet(config, config.multipliers or (1, 2, 4), data, heads, parts)

    @property
    def bottleneck(self) -> nn.Module:
        """The module whose output `(B, C, h, w)` is the h-space, for hooks that edit it."""
        return self.unet.bottleneck

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map noisy `x` `(B, C, h, w)` at times `t` `(B,)`, given `cond`, to `(B, heads, C, h, w)`."""
        time = F.silu(self.time(timestep_embedding(t, self.width)))
        context = None if self.cond is None or cond is None else self.cond(cond)
        return self.unet(x, Condition(time, context))


def _parts(config: LDMConfig, context: int | None) -> Parts:
    def residual(inputs: int, outputs: int) -> Residual:
        return Residual(inputs, outputs, config.groups, 4 * config.width, scale_shift=False, dropout=config.dropout)

    def attention(channels: int) -> SpatialTransformer:
        heads = heads_for(channels, config)
        return SpatialTransformer(channels, config.groups, heads, config.transformer_depth, context)

    return Parts(residual, attention, Downsample, Upsample)
