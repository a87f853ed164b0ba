"""The ADM U-Net (Dhariwal and Nichol, NeurIPS 2021), conditioned as in RCG or as in Diffusion Autoencoders."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import Width
from rcg.core.contracts import Interface, Space
from rcg.core.registry import GENERATORS
from rcg.diffusion import unet
from rcg.nn import ConditionEmbedding, TimeEmbedding

PUBLISHED = {
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
    16: (1, 2, 2),
    1: (1, 2),
}
"""Multipliers from a side on: those of ADM, at 32 px of Improved DDPM, below with fewer levels."""


class ADMConfig(unet.UNetConfig):
    """The ADM U-Net; at 256 px it was published with a width of 256.

    As published it predicts eps and its variance on the linear schedule, and is sampled by ddpm with clipping (there
    with 250 steps).
    """

    defaults = {
        "process": {"name": "gaussian", "variance": "learned_range"},
        "sampler": {"name": "ddpm", "steps": 50, "clip": True},
    }

    name: str = "adm"
    time_width: Width | None = None
    """Width of the sinusoidal embedding of the time; null: `width`."""
    embedding_width: Width | None = None
    """Width of the embedding that the residual blocks get; null: four times `time_width`, as in ADM. Diffusion
    Autoencoders have 512, whatever their width."""
    condition_path: Literal["time", "style"] = "time"
    """Where the condition enters: added to the time embedding (RCG, ADM), or as a scale of its own in every residual
    block (Diffusion Autoencoders), which can be read and edited as a style."""


@GENERATORS.register
class ADM(unet.UNetDenoiser):
    """Denoises images or latents `(B, C, h, w)` at times `(B,)` or `(B, 2)`; output `(B, outputs, C, h, w)`.

    Raises:
        UserError: the side cannot be halved as often as there are levels, or the heads do not divide the channels.
    """

    Config = ADMConfig

    def __init__(self, config: ADMConfig, interface: Interface) -> None:
        super().__init__(config, interface)
        time_width = config.time_width or config.width
        self.styled = config.condition_path == "style"
        embedding = config.embedding_width or 4 * time_width
        self.time = TimeEmbedding(time_width, embedding, interface.times)
        self.cond, style = _embed_condition(interface.cond, embedding, self.styled)
        side = interface.data.shape[1]
        multipliers = config.multipliers or next(m for smallest, m in PUBLISHED.items() if side >= smallest)
        self.unet = unet.UNet(config, multipliers, interface, _layers(config, embedding, style))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map noisy `x` `(B, inputs * C, h, w)` at times `t` `(B,)` or `(B, 2)` to `(B, outputs, C, h, w)`."""
        time = self.time(t)
        if self.cond is None or cond is None:
            return self.unet(x, unet.LayerCondition(F.silu(time)))
        embedded = self.cond(cond)
        if self.styled:
            return self.unet(x, unet.LayerCondition(F.silu(time), F.silu(embedded)))
        return self.unet(x, unet.LayerCondition(F.silu(time + embedded)))


def _embed_condition(cond: Space | None, embedding: int, styled: bool) -> tuple[nn.Module | None, int | None]:
    """Build the embedding of a condition; return it with its width where it is a style."""
    if cond is None:
        return None, None
    if styled and cond.vocab is None:  # a vector is a style as it is, as in Diffusion Autoencoders
        return nn.Identity(), cond.shape[0]
    embed = ConditionEmbedding(cond, embedding)
    if cond.vocab is None:
        unet.zero(embed.embed)  # as in RCG, a new network ignores the representation
    return embed, embedding if styled else None


def _layers(config: ADMConfig, embedding: int, style: int | None) -> unet.LayerFactory:
    def residual(inputs: int, outputs: int, resample: nn.Module | None = None) -> unet.Residual:
        return unet.Residual(
            inputs,
            outputs,
            config.groups,
            embedding,
            scale_shift=True,
            style=style,
            resample=resample,
            dropout=config.dropout,
        )

    return unet.LayerFactory(
        residual,
        attention=lambda channels: unet.SelfAttention(channels, config.groups, unet.head_count(channels, config)),
        down=lambda channels: residual(channels, channels, nn.AvgPool2d(2)),
        up=lambda channels: residual(channels, channels, nn.Upsample(scale_factor=2)),
    )
