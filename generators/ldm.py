"""The U-Net of latent diffusion: spatial transformers attend to the condition (Rombach et al., CVPR 2022)."""

from __future__ import annotations

from pydantic import PositiveInt
from timm.layers import GluMlp
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import Depth, Width
from rcg.core.contracts import Interface, Space
from rcg.core.registry import GENERATORS
from rcg.diffusion import unet
from rcg.nn import Attention, ConditionEmbedding, TimeEmbedding

LABEL_WIDTH = 512
"""Channels of the token of a class."""


class LDMConfig(unet.UNetConfig):
    """The LDM U-Net; LDM-8 was published with a width of 256 and heads of 32 channels.

    As published it predicts eps on the schedule sqrt_linear, and is sampled by ddim at eta 1 (there with 200 steps).
    """

    defaults = {
        "process": {"name": "gaussian", "schedule": "sqrt_linear"},
        "sampler": {"name": "ddim", "steps": 50, "eta": 1.0},
    }

    name: str = "ldm"
    multipliers: tuple[PositiveInt, ...] | None = (1, 2, 4)
    head_width: Width = 32
    transformer_depth: Depth = 1
    """Blocks of a spatial transformer."""
    context_tokens: PositiveInt = 1
    """Tokens made from the condition; the one token of a representation is the representation itself."""


class Context(nn.Module):
    """A condition -> tokens `(B, M, width)` to attend to."""

    def __init__(self, space: Space, tokens: int) -> None:
        super().__init__()
        self.token_count = tokens
        self.width = space.shape[0] if space.vocab is None else LABEL_WIDTH
        is_token = tokens == 1 and space.vocab is None
        self.embed: nn.Module = nn.Identity() if is_token else ConditionEmbedding(space, tokens * self.width)

    def forward(self, cond: Tensor) -> Tensor:
        """Turn `(B, D)` vectors or `(B,)` labels into tokens."""
        return self.embed(cond).unflatten(1, (self.token_count, self.width))


class TransformerBlock(nn.Module):
    """Self-attention of tokens, cross-attention to the context, and a gated MLP."""

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
        self.norm = unet.GroupNorm(groups, channels, eps=1e-6)
        self.input = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(TransformerBlock(channels, heads, context) for _ in range(depth))
        self.output = unet.zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, c: unet.LayerCondition) -> Tensor:
        """Map `(B, C, h, w)`."""
        h = self.input(unet.to_tokens(self.norm(x)))
        for block in self.blocks:
            h = block(h, c.cond)
        return x + unet.to_map(self.output(h), x)


@GENERATORS.register
class LDM(unet.UNetDenoiser):
    """Denoises images or latents `(B, C, h, w)` at times `(B,)` or `(B, 2)`; output `(B, outputs, C, h, w)`.

    Raises:
        UserError: the side cannot be halved as often as there are levels, or the heads do not divide the channels.
    """

    Config = LDMConfig

    def __init__(self, config: LDMConfig, interface: Interface) -> None:
        super().__init__(config, interface)
        self.time = TimeEmbedding(config.width, 4 * config.width, interface.times)
        self.cond = Context(interface.cond, config.context_tokens) if interface.cond else None
        layers = _layers(config, self.cond.width if self.cond else None)
        self.unet = unet.UNet(config, config.multipliers or (1, 2, 4), interface, layers)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map noisy `x` `(B, inputs * C, h, w)` at times `t` `(B,)` or `(B, 2)` to `(B, outputs, C, h, w)`."""
        time = F.silu(self.time(t))
        context = None if self.cond is None or cond is None else self.cond(cond)
        return self.unet(x, unet.LayerCondition(time, context))


def _layers(config: LDMConfig, context: int | None) -> unet.LayerFactory:
    def residual(inputs: int, outputs: int) -> unet.Residual:
        return unet.Residual(
            inputs, outputs, config.groups, 4 * config.width, scale_shift=False, dropout=config.dropout
        )

    def attention(channels: int) -> SpatialTransformer:
        heads = unet.head_count(channels, config)
        return SpatialTransformer(channels, config.groups, heads, config.transformer_depth, context)

    return unet.LayerFactory(residual, attention, unet.Downsample, unet.Upsample)
