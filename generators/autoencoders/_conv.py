"""One convolutional autoencoder for three lineages: MaskGIT's VQGAN, taming's VQGAN, and the KL autoencoder of LDM.

Layers carry the names that the published files use, so that a converter has little to do.
"""

from __future__ import annotations

import math
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import Depth, TrainableAutoencoderConfig, Width
from rcg.core.contracts import Space, TrainableAutoencoder
from rcg.core.errors import UserError
from rcg.encoding.autoencoder import space_id
from rcg.generators._taming import GROUPS, from_published
from rcg.nn import Attention


class ConvConfig(TrainableAutoencoderConfig):
    """The sizes of a convolutional autoencoder; it halves the side once less than it has multipliers."""

    width: Annotated[Width, Field(multiple_of=GROUPS)] | None = None
    """Channels at full resolution; null: 128 as published, below 128 px 64."""
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Channels at each resolution, as multiples of `width`; null: the published ones, without the last of them where
    images are small: from 64 px on at least 16 x 16 positions remain, below 8 x 8."""
    blocks: Depth = 2
    """Residual blocks at each resolution."""
    groups: PositiveInt | None = None
    """Groups of channels that are normalized together; null: 32 as published, in narrow networks fewer, so that four
    channels share a group: with a group for each channel the image's colors would be lost."""
    attention: tuple[PositiveInt, ...] | None = None
    """Down-sampling factors at which blocks are followed by self-attention; null: the published ones."""
    channels: Width = 4
    """Channels of the latent."""

    published_multipliers: ClassVar[tuple[int, ...]] = (1, 2, 4, 4)
    published_attention: ClassVar[tuple[int, ...]] = ()

    def resolve(self, image_size: int) -> Self:
        """Return the section with everything that follows the image size written out.

        Raises:
            UserError: the down-sampling does not divide the image, or attention is asked for where there is no level.
        """
        halvings = int(math.log2(max(1, image_size // (16 if image_size >= 64 else 8))))
        multipliers = self.multipliers or self.published_multipliers[: halvings + 1]
        factors = [2**i for i in range(len(multipliers))]
        if image_size % factors[-1]:
            nearest = max(factors[-1], round(image_size / factors[-1]) * factors[-1])
            raise UserError(
                f"data.image_size is {image_size}, which the autoencoder's down-sampling by {factors[-1]} "
                f"({len(factors)} multipliers) does not divide; the nearest that fits is {nearest}"
            )
        for factor in self.attention or ():
            if factor not in factors:
                raise UserError(
                    f"generator.autoencoder.attention names the down-sampling factor {factor}, but the levels have "
                    f"{', '.join(map(str, factors))}"
                )
        attention = self.attention
        if attention is None:
            attention = tuple(factor for factor in self.published_attention if factor in factors)
        width = self.width or (128 if image_size >= 128 else 64)
        groups = self.groups or min(GROUPS, width // 4)
        sizes = {"width": width, "multipliers": multipliers, "attention": attention, "groups": groups}
        return self.model_copy(update=sizes)


class Lineage(NamedTuple):
    """Differences between the published networks beyond their sizes; the defaults are those of taming's."""

    pooled: bool = False
    """Down-sampling is average pooling, not a strided convolution."""
    bias: bool = True
    """Convolutions in residual blocks, and the encoder's first, have a bias."""
    extra_blocks: int = 1
    """Residual blocks that each level of the decoder has more than the encoder's."""
    pointwise: bool = False
    """The encoder's last convolution is 1x1, and no further 1x1 maps surround the bottleneck."""
    shortcut_of_output: bool = False
    """A block that changes the width adds a 1x1 map of its output to it, not of its input."""
    attention: bool = True
    """The middle has self-attention."""
    signed: bool = True
    """Images lie in [-1, 1], not in [0, 1]."""


MASKGIT = Lineage(
    pooled=True, bias=False, extra_blocks=0, pointwise=True, shortcut_of_output=True, attention=False, signed=False
)
TAMING = Lineage()


class ConvAutoencoder(TrainableAutoencoder):
    """Images in [0, 1] -> `(B, outputs, h, w)` before the bottleneck, and `(B, channels, h, w)` after it -> images.

    Raises:
        UserError: the down-sampling does not divide the image.
    """

    decoder_keys = ("decoder.", "post_quant_conv.")

    def __init__(self, config: Any, image_size: int, lineage: Lineage, outputs: int | None = None) -> None:
        super().__init__(config.resolve(image_size), image_size)
        self.side = image_size // 2 ** (len(self.config.multipliers) - 1)
        self.signed = lineage.signed
        self.channels = channels = self.config.channels
        outputs = outputs or channels
        self.encoder = ConvEncoder(self.config, lineage, outputs)
        self.decoder = ConvDecoder(self.config, lineage)
        self.quant_conv = nn.Identity() if lineage.pointwise else nn.Conv2d(outputs, outputs, 1)
        self.post_quant_conv = nn.Identity() if lineage.pointwise else nn.Conv2d(channels, channels, 1)

    @cached_property
    def space(self) -> Space:
        """Latents `(C, h, w)`; the weights must not change any more."""
        return Space((self.config.channels, self.side, self.side), id=space_id(self))

    def analyze(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to `(B, outputs, h, w)`, float32."""
        x = image * 2 - 1 if self.signed else image
        return self.quant_conv(self.encoder(x)).float()

    def synthesize(self, z: Tensor) -> Tensor:
        """Map `(B, channels, h, w)` to images `(B, 3, H, W)`, nominally in [0, 1]."""
        x = self.decoder(self.post_quant_conv(z))
        return (x + 1) / 2 if self.signed else x

    def rename(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a published file under our names.

        Raises:
            UserError: this network would normalize other groups of channels.
        """
        if self.config.groups != GROUPS:
            raise UserError(
                f"published autoencoders normalize {GROUPS} groups of channels, this one {self.config.groups}: set "
                f"generator.autoencoder.groups={GROUPS}"
            )
        return from_published(tensors)

    @property
    def last_layer(self) -> Tensor:
        """The weight that both the reconstruction and the discriminator see last."""
        return self.decoder.conv_out.weight


class ConvEncoder(nn.Module):
    """`(B, 3, H, W) -> (B, outputs, h, w)`."""

    def __init__(self, config: Any, lineage: Lineage, outputs: int) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(3, config.width, 3, padding=1, bias=lineage.bias)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(zip([config.width, *widths], widths)):
            sample = Downsample(width, lineage.pooled) if i + 1 < len(widths) else None
            attends = 2**i in config.attention
            block_widths = [before, *[width] * config.blocks]
            self.down.append(Resolution(block_widths, config.groups, lineage, attends, "downsample", sample))
        self.mid = Middle(widths[-1], config.groups, lineage)
        self.norm_out = norm(widths[-1], config.groups)
        size = 1 if lineage.pointwise else 3
        self.conv_out = nn.Conv2d(widths[-1], outputs, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Encode images."""
        h = self.conv_in(x)
        for resolution in self.down:
            h = resolution(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class ConvDecoder(nn.Module):
    """`(B, channels, h, w) -> (B, 3, H, W)`."""

    def __init__(self, config: Any, lineage: Lineage) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(config.channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.groups, lineage)
        self.up = nn.ModuleList()  # finest level first, as the published files count
        for i, (width, before) in enumerate(zip(widths, [*widths[1:], widths[-1]])):
            sample = Upsample(width) if i else None
            attends = 2**i in config.attention
            block_widths = [before, *[width] * (config.blocks + lineage.extra_blocks)]
            self.up.append(Resolution(block_widths, config.groups, lineage, attends, "upsample", sample))
        self.norm_out = norm(widths[0], config.groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Decode latents."""
        h = self.mid(self.conv_in(z))
        for resolution in reversed(self.up):
            h = resolution(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Resolution(nn.Module):
    """Residual blocks at one resolution, each followed by attention if asked for, then a change of resolution.

    Args:
        widths: channels before the first block and after each block.
        groups: groups of channels that are normalized together.
        lineage: the published network.
        attends: whether attention follows each block.
        name: name of the layer that changes the resolution.
        sample: that layer, if there is one.
    """

    def __init__(
        self, widths: list[int], groups: int, lineage: Lineage, attends: bool, name: str, sample: nn.Module | None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(Residual(a, b, groups, lineage) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(SpatialAttention(width, groups) for width in widths[1:] if attends)
        self.sample = name if sample is not None else ""
        if sample is not None:
            self.add_module(name, sample)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, h, w)` to `(B, C', h', w')`."""
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.get_submodule(self.sample)(x) if self.sample else x


class Middle(nn.Module):
    """Two residual blocks, with attention between them in one lineage."""

    def __init__(self, width: int, groups: int, lineage: Lineage) -> None:
        super().__init__()
        self.block_1 = Residual(width, width, groups, lineage)
        self.attn_1 = SpatialAttention(width, groups) if lineage.attention else nn.Identity()
        self.block_2 = Residual(width, width, groups, lineage)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, h, w)` to the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Residual(nn.Module):
    """Two convolutions after normalization and SiLU, added to a shortcut."""

    def __init__(self, before: int, after: int, groups: int, lineage: Lineage) -> None:
        super().__init__()
        self.norm1 = norm(before, groups)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=lineage.bias)
        self.norm2 = norm(after, groups)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=lineage.bias)
        self.shortcut_of_output = lineage.shortcut_of_output
        self.nin_shortcut: nn.Conv2d | None = None
        if before != after:
            source = after if lineage.shortcut_of_output else before
            self.nin_shortcut = nn.Conv2d(source, after, 1, bias=lineage.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, before, h, w)` to `(B, after, h, w)`."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        if self.nin_shortcut is None:
            return x + h
        # MaskGIT's blocks drop their input here; its weights were trained so.
        return h + self.nin_shortcut(h if self.shortcut_of_output else x)


class SpatialAttention(nn.Module):
    """Single-head self-attention over all positions, added to its input."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = norm(width, groups)
        self.attention = Attention(width, heads=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, h, w)` to the same shape."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, h * w, C)
        return x + self.attention(tokens).transpose(1, 2).reshape(x.shape)


class Downsample(nn.Module):
    """Halves the side."""

    def __init__(self, width: int, pooled: bool) -> None:
        super().__init__()
        self.conv = None if pooled else nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, h, w)` to `(B, C, h / 2, w / 2)`."""
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # the published networks pad right and below only


class Upsample(nn.Module):
    """Doubles the side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, h, w)` to `(B, C, 2 h, 2 w)`."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def norm(width: int, groups: int) -> nn.GroupNorm:
    """Build a group normalization with the published epsilon."""
    return nn.GroupNorm(groups, width, eps=1e-6)
