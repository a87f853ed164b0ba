"""MoCo v3: a ViT or ResNet trunk with its projector (Chen, Xie, He, ICCV 2021), published or trained in the run."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from rcg.encoders._published import VITS, PublishedEncoder, prefixed, vit
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from rcg.config import EncoderConfig
from rcg.core import pretrained as weights
from rcg.core.errors import UserError
from rcg.core.registry import ENCODERS

MOCO_VITS = {**VITS, "vit_small": (384, 12, 12)}  # its small ViT has twice the usual number of heads
RESNETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}
SMALL = 64
"""Inputs up to this side get fine patches, or a stem that keeps the resolution."""


class MoCoV3Config(EncoderConfig):
    """A MoCo v3 encoder; without `weights` it is trained in the run, at the size of its images."""

    name: str = "moco_v3"
    arch: Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "resnet18", "resnet50"] = "vit_base"
    """Trunk; small, base and large are the published ones."""
    width: PositiveInt | None = None
    """Channels of a ViT, or of a ResNet's first stage; none: of the arch."""
    depth: PositiveInt | None = None
    """Blocks of a ViT, or of each of a ResNet's stages; none: of the arch."""
    heads: PositiveInt | None = None
    """Attention heads of a ViT; none: of the arch."""
    patch: PositiveInt | None = None
    """Side of a ViT's patches; none: 16, on small images an eighth of the side."""
    input_size: PositiveInt | None = None
    """Side that images are resized to; none: 224 with given weights, else that of the images."""
    projector_hidden: PositiveInt = 4096
    """Hidden width of the projector."""
    projector_dim: PositiveInt = 256
    """Width of the projector's output."""
    feature: Literal["backbone", "projector"] = "projector"


@ENCODERS.register
class MoCoV3(PublishedEncoder):
    """Maps images to the projector's output, as RCG does, or to the trunk's class token or mean."""

    Config = MoCoV3Config
    license = "cc-by-nc-4.0"
    origin = "give a file, or train it"

    def __init__(self, config: MoCoV3Config, image_size: int | None = None, load: bool = True) -> None:
        own = image_size if config.weights is None else None
        side = config.input_size or own or 224
        if config.arch in MOCO_VITS and config.train.augment.size not in (None, side):
            raise UserError(
                f"encoder.train.augment.size is {config.train.augment.size}, but {config.arch} needs views of its own "
                f"{side} px: leave it out, or choose encoder.arch=resnet18"
            )
        trunk = _vit(config, side) if config.arch in MOCO_VITS else _resnet(config, side)
        head = _projector(trunk.num_features, config.projector_hidden, config.projector_dim)
        super().__init__(config, trunk, head, config.projector_dim, side)
        self.fill(load)

    def rename(self, found: dict[str, Any]) -> dict[str, Tensor]:
        """Take the base encoder, not its momentum copy, and mend the misnamed keys of the published ViT-L."""
        tensors = weights.state_dict(found)
        if any(key.startswith("trunk.") for key in tensors):  # an encoder of a run
            return tensors
        base = {k.removeprefix("base_encoder."): v for k, v in tensors.items() if k.startswith("base_encoder.")}
        return prefixed({_repair(key): value for key, value in (base or tensors).items()})


def sincos_positions(grid: int, width: int) -> Tensor:
    """Return MoCo v3's fixed positions `(1, 1 + grid * grid, width)`; the class token's is zero.

    Patch (i, j) = (n // grid, n % grid) has [sin(i w), cos(i w), sin(j w), cos(j w)], w_k = 10000^(-k / (width / 4)).
    """
    omega = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float32) / (width / 4))
    i, j = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * omega for axis in (i, j)]
    patches = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, width), patches])[None]


def _vit(config: MoCoV3Config, side: int) -> Any:
    patch = config.patch or (16 if side > SMALL else max(2, side // 8))
    trunk = vit(config, MOCO_VITS, side, patch, weight_init="moco")
    trunk.pos_embed.data.copy_(sincos_positions(side // patch, trunk.embed_dim))
    trunk.pos_embed.requires_grad_(False)
    # A frozen patch projection is what keeps the training of ViTs stable (Section 4.1 of the paper).
    trunk.patch_embed.proj.requires_grad_(False)
    return trunk


def _resnet(config: MoCoV3Config, side: int) -> Any:
    block, layers = RESNETS[config.arch]
    width = config.width or 64
    if width % 2:
        raise UserError(f"encoder.width is {width}; the first stage of a ResNet needs an even number of channels")
    layers = (config.depth,) * 4 if config.depth else layers
    trunk: Any = ResNet(
        block,
        layers,
        num_classes=0,
        channels=(width, 2 * width, 4 * width, 8 * width),
        stem_type="deep",
        stem_width=width // 2,
    )
    # timm sizes the rest after its deep stem; the stem itself is ResNet's own, or one that keeps a small image's size.
    small = side <= SMALL
    trunk.conv1 = nn.Conv2d(3, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
    if small:
        trunk.maxpool = nn.Identity()
    return trunk


def _projector(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Three layers with batch normalization, the last one without affine parameters."""
    return nn.Sequential(
        nn.Linear(dim, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, out, bias=False),
        nn.BatchNorm1d(out, affine=False),
    )


def _repair(key: str) -> str:
    """Undo the misnaming in the published ViT-L file: `blocks.13.norm13` -> norm1, `blocks.14.mlp.fc14` -> fc2."""
    return re.sub(r"^(blocks\.1[34]\.(?:mlp\.)?(?:norm|fc))1([34])\.", lambda m: f"{m[1]}{'12'[m[2] == '4']}.", key)
