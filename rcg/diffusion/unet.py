"""U-Nets: residual blocks, resampling, the way down, and the way up with its skip connections.

Activations are channels-last in memory: convolutions are faster that way, and attention reads them without a copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from pydantic import Field, PositiveInt, ValidationInfo, field_validator
from timm.layers.fast_norm import fast_group_norm
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import Config, Depth, Fraction, GeneratorConfig, Width
from rcg.core.contracts import Denoiser, Interface
from rcg.core.errors import UserError
from rcg.nn import Attention, Dropout, checkpointed, matrices

M = TypeVar("M", bound=nn.Module)


class UNetShape(Config):
    """The shape of a U-Net.

    Attributes:
        section: the section of an experiment that it belongs to.
    """

    section: ClassVar[str]

    width: Width = 128
    """Channels at full resolution."""
    multipliers: tuple[PositiveInt, ...] | None = Field(None, min_length=1)
    """Channels of each level, as multiples of `width`; each level halves the side of the one before. Null: as
    published."""
    blocks: Depth = 2
    """Residual blocks of a level on the way down; the way up has one more."""
    groups: PositiveInt = Field(None, validate_default=True)
    """Groups of channels that are normalized together; null: 32 as published, in narrow networks fewer, so that four
    channels share a group: with a group for each channel the image's colors would be lost."""
    attention: tuple[PositiveInt, ...] = (32, 16, 8)
    """Sides of the feature maps whose positions attend to each other."""
    head_width: Width = 64
    """Channels of an attention head."""
    heads: Width | None = None
    """Attention heads everywhere; null: as many as `head_width` gives."""

    @field_validator("groups", mode="before")
    @classmethod
    def _choose_groups(cls, groups: Any, info: ValidationInfo) -> Any:
        width = info.data.get("width", 128)  # absent where it was refused itself
        return math.gcd(width, max(1, min(32, width // 4))) if groups is None else groups


class UNetConfig(UNetShape, GeneratorConfig):
    """A generator's U-Net."""

    section = "generator"

    dropout: Fraction = 0.0
    """Share of activations dropped in residual blocks."""


class LayerCondition(NamedTuple):
    """The condition of every layer."""

    time: Tensor
    """Embedding of the time, plus all that is added to it, activated, `(B, E)`."""
    cond: Tensor | None = None
    """A condition apart from the time: an activated style `(B, S)`, or tokens `(B, M, D)`."""


class LayerFactory(NamedTuple):
    """Builds the layers of a U-Net from their channels: in and out of a residual block, those of any other layer.

    Half a U-Net has no way `up`.
    """

    residual: Callable[[int, int], nn.Module]
    attention: Callable[[int], nn.Module]
    down: Callable[[int], nn.Module]
    up: Callable[[int], nn.Module] | None = None

    def cell(self, inputs: int, outputs: int, attends: bool) -> Cell:
        """Build a residual block, followed by attention if asked for."""
        cell = Cell([self.residual(inputs, outputs)])
        if attends:
            cell.append(self.attention(outputs))
        return cell


class GroupNorm(nn.GroupNorm):
    """Group normalization that stays in autocast's precision: in float32 it would take longer than the convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `(B, C, h, w)`."""
        return fast_group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class Residual(nn.Module):
    """`skip(x) + conv(modulated(conv(x)))`, with a zero-initialized last convolution.

    Args:
        inputs: input channels.
        outputs: output channels.
        groups: groups of channels that are normalized together; divides both.
        time: width of the time embedding.
        scale_shift: the time scales and shifts the second norm (Dhariwal and Nichol, 2021), or is added before it.
        style: width of a style that scales once more (Diffusion Autoencoders, Preechakul et al., 2022, eq. 7).
        resample: layer that changes the side by a factor of two; null: the side stays.
        dropout: share of activations dropped.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        groups: int,
        time: int,
        *,
        scale_shift: bool,
        style: int | None = None,
        resample: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample or nn.Identity()
        self.norm_in = GroupNorm(groups, inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, 2 * outputs if scale_shift else outputs)
        self.style = nn.Linear(style, outputs) if style else None
        self.norm_out = GroupNorm(groups, outputs)
        self.dropout = Dropout(dropout)
        self.conv_out = zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, c: LayerCondition) -> Tensor:
        """Map `(B, inputs, h, w)` to `(B, outputs, h', w')`."""
        h = self.conv_in(self.resample(F.silu(self.norm_in(x))))
        h = self._modulate(h, self.time(c.time)[:, :, None, None])
        if self.style is not None and c.cond is not None:
            h = h * (1 + self.style(c.cond)[:, :, None, None])
        return self.skip(self.resample(x)) + self.conv_out(self.dropout(F.silu(h)))

    def _modulate(self, h: Tensor, time: Tensor) -> Tensor:
        if not self.scale_shift:
            return self.norm_out(h + time)
        scale, shift = time.chunk(2, dim=1)
        return self.norm_out(h) * (1 + scale) + shift


class Downsample(nn.Module):
    """Halves the side by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stride = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, c: LayerCondition) -> Tensor:
        """Map `(B, C, h, w)` to `(B, C, h / 2, w / 2)`."""
        return self.stride(x)


class Upsample(nn.Module):
    """Doubles the side by repetition and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, c: LayerCondition) -> Tensor:
        """Map `(B, C, h, w)` to `(B, C, 2 h, 2 w)`."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Cell(nn.ModuleList):
    """Layers in sequence, each given the condition."""

    def forward(self, x: Tensor, c: LayerCondition | None) -> Tensor:
        """Map `(B, C, h, w)`."""
        for layer in self:
            x = layer(x, c)
        return x


class SelfAttention(nn.Module):
    """Attention of the positions of a map to each other."""

    def __init__(self, channels: int, groups: int, heads: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels)
        self.attention = Attention(channels, heads)
        zero(self.attention.proj)

    def forward(self, x: Tensor, c: LayerCondition | None) -> Tensor:
        """Map `(B, C, h, w)`."""
        return x + to_map(self.attention(to_tokens(self.norm(x))), x)


class HalfUNet(nn.Module):
    """The way down of a U-Net and its bottleneck.

    Args:
        shape: widths, blocks and where to attend.
        multipliers: channels of each level, as multiples of the width.
        channels: channels of the input.
        side: side of the input.
        layers: what it is made of.

    Attributes:
        widths: channels of the levels.
        skips: channels of the skip connections, in the order of the way down.
        attends: which levels have attention.
        bottleneck: the cell at the smallest side, which no skip connection bypasses (the h-space of Kwon et al., 2023).

    Raises:
        UserError: the side cannot be halved as often as there are levels, or groups do not divide the width.
    """

    def __init__(
        self, shape: UNetShape, multipliers: tuple[int, ...], channels: int, side: int, layers: LayerFactory
    ) -> None:
        super().__init__()
        levels = len(multipliers)
        if side % 2 ** (levels - 1):
            raise UserError(
                f"{shape.section}.multipliers has {levels} levels, but a side of {side} cannot be halved that often"
            )
        if shape.width % shape.groups:
            raise UserError(f"{shape.section}.groups is {shape.groups}, which does not divide the width {shape.width}")
        self.grad_checkpointing = False
        self.widths = [shape.width * multiplier for multiplier in multipliers]
        self.attends = [side // 2**level in shape.attention for level in range(levels)]
        self.input = nn.Conv2d(channels, shape.width, 3, padding=1)
        # The way down; every cell's output is a skip connection.
        self.down, self.skips = nn.ModuleList(), [shape.width]
        for level, width in enumerate(self.widths):
            for _ in range(shape.blocks):
                self.down.append(layers.cell(self.skips[-1], width, self.attends[level]))
                self.skips.append(width)
            if level < levels - 1:
                self.down.append(Cell([layers.down(width)]))
                self.skips.append(width)
        # The bottleneck.
        width = self.widths[-1]
        self.bottleneck = layers.cell(width, width, attends=True)
        self.bottleneck.append(layers.residual(width, width))
        self.to(memory_format=torch.channels_last)

    def descend(self, x: Tensor, c: LayerCondition | None) -> tuple[Tensor, list[Tensor]]:
        """Map `(B, channels, h, w)` to the h-space `(B, C, h', w')`; return the skip connections too."""
        h = self.input(x.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for cell in self.down:
            h = checkpointed(cell, h, c, enabled=self.grad_checkpointing)
            skips.append(h)
        return checkpointed(self.bottleneck, h, c, enabled=self.grad_checkpointing), skips


class UNet(HalfUNet):
    """`(B, inputs * C, h, w)` -> `(B, outputs, C, h, w)`, whatever its layers are; see `HalfUNet`."""

    def __init__(
        self, config: UNetConfig, multipliers: tuple[int, ...], interface: Interface, layers: LayerFactory
    ) -> None:
        channels, side, _ = interface.data.shape
        super().__init__(config, multipliers, interface.inputs * channels, side, layers)
        assert layers.up is not None
        self.outputs, self.grad_checkpointing = interface.outputs, config.grad_checkpointing
        self.features: Sequence[Tensor] = ()
        self.align_depths = config.align.depths if config.align else ()
        if config.align:
            config.align.check_depths(len(self.down) + 1)
        # A block's output is a skip connection, but for the bottleneck's, which is the last.
        self.feature_widths = [[*self.skips, self.widths[-1]][depth] for depth in self.align_depths]
        # The way up, which uses up the skip connections from the end.
        self.up, skips, width = nn.ModuleList(), list(self.skips), self.widths[-1]
        for level in reversed(range(len(multipliers))):
            for block in range(config.blocks + 1):
                cell = layers.cell(width + skips.pop(), self.widths[level], self.attends[level])
                width = self.widths[level]
                if level and block == config.blocks:
                    cell.append(layers.up(width))
                self.up.append(cell)
        # The output.
        self.norm = GroupNorm(config.groups, width)
        self.output = zero(nn.Conv2d(width, interface.outputs * channels, 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, c: LayerCondition) -> Tensor:
        """Map `(B, inputs * C, h, w)` to `(B, outputs, C, h, w)`."""
        h, skips = self.descend(x, c)
        if self.training:
            self.features = [to_tokens([*skips, h][depth]) for depth in self.align_depths]
        for cell in self.up:
            h = checkpointed(cell, torch.cat([h, skips.pop()], dim=1), c, enabled=self.grad_checkpointing)
        return self.output(F.silu(self.norm(h))).unflatten(1, (self.outputs, -1))


class UNetDenoiser(Denoiser):
    """A denoiser whose network is `unet`."""

    capabilities = frozenset({"self_condition", "two_times", "grad_checkpointing", "align", "h_space"})
    unet: UNet

    @property
    def feature_widths(self) -> Sequence[int]:
        """Channels of the maps to be aligned."""
        return self.unet.feature_widths

    def take_features(self) -> Sequence[Tensor]:
        """Return the maps to be aligned of the last evaluation in training as tokens, and let go of them."""
        features, self.unet.features = self.unet.features, ()
        return features

    def bottleneck(self, block: int | None = None) -> nn.Module:
        """Return the module whose output `(B, C, h, w)` is the h-space: the one at the smallest side."""
        if block is not None:
            raise UserError(f"a U-Net has one bottleneck, and no block {block} to choose: leave it out")
        return self.unet.bottleneck

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights of convolutions, attention and MLPs on the way down, at the bottleneck and on the way up.

        A convolution `(O, I, k, k)` counts as a matrix `(O, I k k)`.
        """
        return matrices(self.unet.down, self.unet.bottleneck, self.unet.up, but={"time", "style"})


def head_count(channels: int, shape: UNetShape) -> int:
    """Return the number of attention heads for `channels`: as configured, or as many as are about `head_width` wide.

    Raises:
        UserError: they do not divide the channels.
    """
    heads = shape.heads or max(1, channels // shape.head_width)
    if channels % heads:
        key = "heads" if shape.heads else "head_width"
        raise UserError(f"{shape.section}.{key} is {getattr(shape, key)}, which does not divide {channels} channels")
    return heads


def to_tokens(x: Tensor) -> Tensor:
    """Turn a map `(B, C, h, w)` into tokens `(B, h w, C)`."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """Turn tokens `(B, h w, C)` into a map with the sides of `like`, `(B, C, h, w)`."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def zero(layer: M) -> M:
    """Set the parameters of a layer to zero, and return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
