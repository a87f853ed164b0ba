"""One convolutional autoencoder for three lineages: MaskGIT's VQGAN, taming's VQGAN, and the KL autoencoder of LDM.

Layers carry the names that the published files use, so that a converter has little to do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveInt
from rcg.generators.published._taming import GROUPS, ours
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import AutoencoderConfig
from rcg.core.errors import UserError
from rcg.nn import Attention


class ConvConfig(AutoencoderConfig):
    """The sizes of a convolutional autoencoder; it halves the side once less than it has multipliers."""

    width: Annotated[PositiveInt, Field(multiple_of=GROUPS)] | None = None
    """Channels at full resolution; none: 128 as published, below 128 px 64."""
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Channels at each resolution, as multiples of `width`; none: the published ones, of which the last are left out
    where images are small: from 64 px on at least 16 x 16 positions remain, below 8 x 8."""
    blocks: PositiveInt = 2
    """Residual blocks at each resolution."""
    groups: PositiveInt | None = None
    """Groups of channels that are normalized together; none: 32 as published, in narrow networks fewer, so that four
    channels share a group. Alone, a channel would lose the image's colors."""
    attention: tuple[PositiveInt, ...] | None = None
    """Down-sampling factors at which blocks are followed by self-attention; none: the published ones."""
    channels: PositiveInt = 4
    """Channels of the latent."""

    published: ClassVar[tuple[int, ...]] = (1, 2, 4, 4)
    published_attention: ClassVar[tuple[int, ...]] = ()

    def stated(self, image_size: int) -> Self:
        """Return the section with everything that follows the image size written out.

        Raises:
            UserError: the down-sampling does not divide the image, or attention is asked for where there is no level.
        """
        spare = max(1, image_size // (16 if image_size >= 64 else 8))
        multipliers = self.multipliers or self.published[: int(math.log2(spare)) + 1]
        levels = [2**i for i in range(len(multipliers))]
        if image_size % levels[-1]:
            fits = max(levels[-1], round(image_size / levels[-1]) * levels[-1])
            raise UserError(
                f"data.image_size is {image_size}, which the autoencoder's down-sampling by {levels[-1]} "
                f"({len(levels)} multipliers) does not divide; the nearest that fits is {fits}"
            )
        for factor in self.attention or ():
            if factor not in levels:
                raise UserError(
                    f"generator.autoencoder.attention names the down-sampling factor {factor}, but the levels have "
                    f"{', '.join(map(str, levels))}"
                )
        attention = self.attention
        if attention is None:
            attention = tuple(factor for factor in self.published_attention if factor in levels)
        width = self.width or (128 if image_size >= 128 else 64)
        groups = self.groups or min(GROUPS, width // 4)
        sizes = {"width": width, "multipliers": multipliers, "attention": attention, "groups": groups}
        return self.model_copy(update=sizes)


@dataclass(frozen=True)
class Lineage:
    """Where the published networks differ beyond their sizes."""

    pooled: bool
    """Down-sampling is average pooling, not a strided convolution."""
    bias: bool
    """Convolutions in residual blocks, and the encoder's first, have a bias."""
    spare: int
    """Residual blocks that each level of the decoder has more than the encoder's."""
    pointwise: bool
    """The encoder's last convolution looks at single positions, and no further 1x1 maps surround the bottleneck."""
    shortcut_of_output: bool
    """A block that changes the width adds a 1x1 map of its output to it, not of its input."""
    attention: bool
    """The middle has self-attention."""
    signed: bool
    """Images lie in [-1, 1], not in [0, 1]."""


MASKGIT = Lineage(
    pooled=True, bias=False, spare=0, pointwise=True, shortcut_of_output=True, attention=False, signed=False
)
TAMING = Lineage(
    pooled=False, bias=True, spare=1, pointwise=False, shortcut_of_output=False, attention=True, signed=True
)


class ConvAutoencoder(nn.Module):
    """Images in [0, 1] -> `(B, outputs, h, w)` before the bottleneck, and `(B, channels, h, w)` after it -> images.

    Raises:
        UserError: the down-sampling does not divide the image.
    """

    decoding = ("decoder.", "post_quant_conv.")
    keeps_space = False

    def __init__(self, config: Any, image_size: int, lineage: Lineage, outputs: int | None = None) -> None:
        super().__init__()
        self.config = config = config.stated(image_size)
        self.side, self.signed = image_size // 2 ** (len(config.multipliers) - 1), lineage.signed
        outputs = outputs or config.channels
        self.encoder = Encoder(config, lineage, outputs)
        self.decoder = Decoder(config, lineage)
        self.quant_conv, self.post_quant_conv = (
            nn.Identity() if lineage.pointwise else nn.Conv2d(width, width, 1) for width in (outputs, config.channels)
        )

    def keep_space(self) -> None:
        """Let nothing but the decoder learn from now on."""
        self.keeps_space = True
        for name, p in self.named_parameters():
            p.requires_grad_(name.startswith(self.decoding))
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Change to training mode, or back; a bottleneck whose space is kept follows nothing in either."""
        super().train(mode)
        for name, part in self.named_children():
            if self.keeps_space and f"{name}." not in self.decoding:
                part.eval()
        return self

    def analyze(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to `(B, outputs, h, w)`, float32."""
        x = image * 2 - 1 if self.signed else image
        z: Tensor = self.quant_conv(self.encoder(x))
        return z.float()

    def synthesize(self, z: Tensor) -> Tensor:
        """Map `(B, channels, h, w)` to images `(B, 3, H, W)`, nominally in [0, 1]."""
        x: Tensor = self.decoder(self.post_quant_conv(z))
        return (x + 1) / 2 if self.signed else x

    def published(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a published file under our names.

        Raises:
            UserError: this network would normalize other groups of channels.
        """
        if self.config.groups != GROUPS:
            raise UserError(
                f"published autoencoders normalize {GROUPS} groups of channels, this one {self.config.groups}: set "
                f"generator.autoencoder.groups={GROUPS}"
            )
        return ours(found)

    @property
    def last_layer(self) -> Tensor:
        """The weight that both the reconstruction and the discriminator see last."""
        last: nn.Conv2d = self.decoder.conv_out
        return last.weight


class Encoder(nn.Module):
    """`(B, 3, H, W) -> (B, outputs, h, w)`."""

    def __init__(self, config: Any, lineage: Lineage, outputs: int) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(3, config.width, 3, padding=1, bias=lineage.bias)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(zip([config.width, *widths], widths)):
            sample = Downsample(width, lineage.pooled) if i + 1 < len(widths) else None
            attends = 2**i in config.attention
            inner = [before, *[width] * config.blocks]
            self.down.append(Level(inner, config.groups, lineage, attends, "downsample", sample))
        self.mid = Middle(widths[-1], config.groups, lineage)
        self.norm_out = norm(widths[-1], config.groups)
        size = 1 if lineage.pointwise else 3
        self.conv_out = nn.Conv2d(widths[-1], outputs, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Encode."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        h = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return h


class Decoder(nn.Module):
    """`(B, channels, h, w) -> (B, 3, H, W)`."""

    def __init__(self, config: Any, lineage: Lineage) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(config.channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.groups, lineage)
        self.up = nn.ModuleList()  # finest level first, as the published files count
        for i, (width, before) in enumerate(zip(widths, [*widths[1:], widths[-1]])):
            sample = Upsample(width) if i else None
            inner = [before, *[width] * (config.blocks + lineage.spare)]
            self.up.append(Level(inner, config.groups, lineage, 2**i in config.attention, "upsample", sample))
        self.norm_out = norm(widths[0], config.groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Decode."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return h


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where asked for, then a change of resolution."""

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
    """Two residual blocks, in one lineage with attention between them."""

    def __init__(self, width: int, groups: int, lineage: Lineage) -> None:
        super().__init__()
        self.block_1 = Residual(width, width, groups, lineage)
        self.attn_1 = SpatialAttention(width, groups) if lineage.attention else nn.Identity()
        self.block_2 = Residual(width, width, groups, lineage)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, h, w)` to the same shape."""
        x = self.block_2(self.attn_1(self.block_1(x)))
        return x


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
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        if self.nin_shortcut is None:
            return x + h
        # MaskGIT's blocks lose their input here; its weights were trained so.
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
        attended: Tensor = self.attention(tokens)
        return x + attended.transpose(1, 2).reshape(x.shape)


class Downsample(nn.Module):
    """Halves the side."""

    def __init__(self, width: int, pooled: bool) -> None:
        super().__init__()
        self.conv = None if pooled else nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, h, w)` to `(B, C, h / 2, w / 2)`."""
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        h: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))  # the published networks pad right and below only
        return h


class Upsample(nn.Module):
    """Doubles the side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, h, w)` to `(B, C, 2 h, 2 w)`."""
        h: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return h


def norm(width: int, groups: int) -> nn.GroupNorm:
    """Normalize in groups, with the published epsilon."""
    return nn.GroupNorm(groups, width, eps=1e-6)
