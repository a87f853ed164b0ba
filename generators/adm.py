"""The ADM U-Net (Dhariwal and Nichol, NeurIPS 2021), conditioned as in RCG or as in Diffusion Autoencoders."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import PositiveInt, SerializeAsAny
from rcg.generators._unet import (
    Condition,
    GroupNorm,
    Parts,
    Residual,
    UNet,
    UNetConfig,
    heads_for,
    map_of,
    time_embedding,
    tokens_of,
    zero,
)
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import ProcessConfig, SamplerConfig, component, unsaid
from rcg.core.contracts import Space
from rcg.core.registry import GENERATORS, PROCESSES, SAMPLERS
from rcg.nn import Attention, ConditionEmbedding, timestep_embedding

PUBLISHED = {
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
    16: (1, 2, 2),
    1: (1, 2),
}
"""Multipliers from a side on: those of ADM, at 32 px of Improved DDPM, below with fewer levels."""


class ADMConfig(UNetConfig):
    """The ADM U-Net; at 256 px it was published with a width of 256."""

    name: str = "adm"
    time_width: PositiveInt | None = None
    """Width of the sinusoids of the time; none: `width`."""
    condition_path: Literal["time", "style"] = "time"
    """Where the condition enters: added to the time embedding (RCG, ADM), or as a scale of its own in every residual
    block (Diffusion Autoencoders), which can be read and edited as a style."""
    process: Annotated[
        SerializeAsAny[ProcessConfig], component(PROCESSES, name="gaussian", variance="learned_range")
    ] = unsaid()
    """How data is corrupted and what the network predicts; as published: eps and its variance, linear."""
    sampler: Annotated[SerializeAsAny[SamplerConfig], component(SAMPLERS, name="ddpm", steps=50, clip=True)] = unsaid()
    """How samples are drawn; as published: ddpm with clipping (there with 250 steps)."""


class SelfAttention(nn.Module):
    """Attention of the positions of a map to each other."""

    def __init__(self, channels: int, groups: int, heads: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels)
        self.attention = Attention(channels, heads)
        zero(self.attention.proj)

    def forward(self, x: Tensor, c: Condition) -> Tensor:
        """Map `(B, C, h, w)`."""
        return x + map_of(self.attention(tokens_of(self.norm(x))), x)


@GENERATORS.register
class ADM(nn.Module):
    """Denoises images or latents `(B, C, h, w)` at integer times `(B,)`; output `(B, heads, C, h, w)`.

    Raises:
        UserError: the side cannot be halved as often as there are levels, or the heads do not divide the channels.
    """

    Config = ADMConfig

    def __init__(self, config: ADMConfig, data: Space, cond: Space | None, heads: int) -> None:
        super().__init__()
        self.width, self.grad_checkpointing = config.time_width or config.width, config.grad_checkpointing
        self.styled = config.condition_path == "style"
        embedding = 4 * self.width
        self.time = time_embedding(self.width)
        self.cond, style = _condition(cond, embedding, self.styled)
        multipliers = config.multipliers or next(m for side, m in PUBLISHED.items() if data.shape[1] >= side)
        self.unet = UNet(config, multipliers, data, heads, _parts(config, embedding, style))

    @property
    def bottleneck(self) -> nn.Module:
        """The module whose output `(B, C, h, w)` is the h-space, for hooks that edit it."""
        return self.unet.bottleneck

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map noisy `x` `(B, C, h, w)` at times `t` `(B,)`, given `cond`, to `(B, heads, C, h, w)`."""
        time = self.time(timestep_embedding(t, self.width))
        known = None if self.cond is None or cond is None else self.cond(cond)
        if self.styled:
            return self.unet(x, Condition(F.silu(time), None if known is None else F.silu(known)))
        return self.unet(x, Condition(F.silu(time if known is None else time + known)))


def _condition(cond: Space | None, embedding: int, styled: bool) -> tuple[nn.Module | None, int | None]:
    """Return the embedding of a condition, and its width where it is a style."""
    if cond is None:
        return None, None
    if styled and cond.vocab is None:  # a vector is a style as it is, as in Diffusion Autoencoders
        return nn.Identity(), cond.shape[0]
    embed = ConditionEmbedding(cond, embedding)
    if cond.vocab is None:
        zero(embed.embed)  # as in RCG, a new network does not listen to the representation
    return embed, embedding if styled else None


def _parts(config: ADMConfig, embedding: int, style: int | None) -> Parts:
    def residual(inputs: int, outputs: int, resample: str = "none") -> Residual:
        return Residual(
            inputs,
            outputs,
            config.groups,
            embedding,
            scale_shift=True,
            style=style,
            resample=resample,
            dropout=config.dropout,
        )

    return Parts(
        residual,
        attention=lambda channels: SelfAttention(channels, config.groups, heads_for(channels, config)),
        down=lambda channels: residual(channels, channels, "down"),
        up=lambda channels: residual(channels, channels, "up"),
    )
