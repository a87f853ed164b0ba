"""The semantic encoder of Diffusion Autoencoders (Preechakul et al., CVPR 2022): half a U-Net, pooled to a vector.

It learns together with a generator, from the generator's loss alone.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import EncoderConfig, Width
from rcg.core import pretrained
from rcg.core.contracts import Encoder
from rcg.core.registry import ENCODERS
from rcg.diffusion import unet

PUBLISHED = {
    256: (1, 1, 2, 2, 4, 4, 4),
    128: (1, 1, 2, 3, 4, 4),
    64: (1, 2, 4, 8, 8),
    32: (1, 2, 2, 2),
    16: (1, 2, 2),
    1: (1, 2),
}
"""Multipliers from a side on: as published down to 4 px, below 64 px with fewer levels."""


class SemanticConfig(unet.UNetShape, EncoderConfig):
    """A semantic encoder; without `weights` tools/train_pixel.py trains it, together with the generator.

    At 128 and 256 px it was published with a width of 128, at 64 px of 64.
    """

    section = "encoder"

    name: str = "semantic"
    attention: tuple[PositiveInt, ...] = (16,)
    heads: Width | None = 1
    dim: Width = 512
    """Width of the representation."""
    feature: Literal["backbone"] = "backbone"


class Residual(nn.Module):
    """`skip(x) + conv(x)`: a residual block without time, which has one convolution."""

    def __init__(self, inputs: int, outputs: int, groups: int, resample: nn.Module | None = None) -> None:
        super().__init__()
        self.resample = resample or nn.Identity()
        self.norm_in = unet.GroupNorm(groups, inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, c: None) -> Tensor:
        """Map `(B, inputs, h, w)` to `(B, outputs, h', w')`."""
        return self.skip(self.resample(x)) + self.conv_in(self.resample(F.silu(self.norm_in(x))))


@ENCODERS.register
class Semantic(Encoder):
    """Maps images to the pooled bottleneck of half a U-Net.

    Raises:
        UserError: the side cannot be halved as often as there are levels, the heads do not divide the channels, or the
            weights do not fit.
    """

    Config = SemanticConfig
    joint = True

    def __init__(self, config: SemanticConfig, image_size: int, load: bool = True) -> None:
        super().__init__(config, image_size, load)
        multipliers = config.multipliers or next(m for smallest, m in PUBLISHED.items() if image_size >= smallest)
        self.width = config.dim
        self.trunk = unet.HalfUNet(config, multipliers, 3, image_size, _layers(config))
        self.norm = unet.GroupNorm(config.groups, self.trunk.widths[-1])
        self.output = nn.Linear(self.trunk.widths[-1], config.dim)
        if load and config.weights not in (None, "none"):
            pretrained.fit(self, pretrained.read_weights(str(config.weights)), str(config.weights))

    def forward(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to representations `(B, dim)`."""
        h, _ = self.trunk.descend(2 * image - 1, None)
        return self.output(F.silu(self.norm(h)).mean(dim=(2, 3)))


def _layers(config: SemanticConfig) -> unet.LayerFactory:
    def residual(inputs: int, outputs: int, resample: nn.Module | None = None) -> Residual:
        return Residual(inputs, outputs, config.groups, resample)

    return unet.LayerFactory(
        residual,
        attention=lambda channels: unet.SelfAttention(channels, config.groups, unet.head_count(channels, config)),
        down=lambda channels: residual(channels, channels, nn.AvgPool2d(2)),
    )
