"""MoCo v3: a ViT or ResNet trunk with its projector (Chen, Xie, He, ICCV 2021), published or trained in the run."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from rcg import weights
from rcg.config import EncoderConfig
from rcg.errors import UserError
from rcg.registry import ENCODERS

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VITS = {"vit_tiny": (192, 12, 3), "vit_small": (384, 12, 12), "vit_base": (768, 12, 12), "vit_large": (1024, 24, 16)}
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
class MoCoV3(nn.Module):
    """Maps images `(B, 3, H, W)` in [0, 1] to `(B, width)`: the projector's output, or the trunk's.

    Published names of tensors are those of `trunk` without its prefix, and of `head`.
    """

    Config = MoCoV3Config
    mean: Tensor
    std: Tensor

    def __init__(self, config: MoCoV3Config, image_size: int | None = None, load: bool = True) -> None:
        super().__init__()
        self.config = config
        own = image_size if config.weights is None else None
        self.side = config.input_size or own or 224
        self.trunk = _vit(config, self.side) if config.arch in VITS else _resnet(config, self.side)
        dim = self.trunk.num_features
        self.head = _projector(dim, config.projector_hidden, config.projector_dim)
        self.width = config.projector_dim if config.feature == "projector" else dim
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        if load and config.weights is not None:
            self._load(config.weights)

    def forward(self, image: Tensor) -> Tensor:
        """Return the representation `(B, width)`."""
        return self.project(image) if self.config.feature == "projector" else self._pooled(image)

    def project(self, image: Tensor) -> Tensor:
        """Return the projector's output `(B, projector_dim)`, which contrastive training compares."""
        projected: Tensor = self.head(self._pooled(image))
        return projected

    def tokens(self, image: Tensor) -> Tensor:
        """Return features on a grid, row by row: patches `(B, N, D')` of a ViT, the last map of a ResNet."""
        features: Tensor = self.trunk.forward_features(self._prepare(image))
        return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features[:, 1:]

    def _pooled(self, image: Tensor) -> Tensor:
        features: Tensor = self.trunk.forward_features(self._prepare(image))
        return features.mean((2, 3)) if features.ndim == 4 else features[:, 0]

    def _prepare(self, image: Tensor) -> Tensor:
        """Normalise, then resize without antialiasing, as the published representations were computed."""
        x = (image - self.mean) / self.std
        if x.shape[-2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bicubic", align_corners=False)
        return x

    def _load(self, path: str) -> None:
        tensors = weights.state_dict(weights.read(path))
        base = {k.removeprefix("base_encoder."): v for k, v in tensors.items() if k.startswith("base_encoder.")}
        renamed = {}
        for key, value in (base or tensors).items():
            name = _repair(key)
            renamed[name if name.startswith("head.") else f"trunk.{name}"] = value
        if not base and any(key.startswith("trunk.") for key in tensors):
            renamed = tensors
        weights.fit(self, renamed, path)


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
    width, depth, heads = VITS[config.arch]
    width, depth, heads = config.width or width, config.depth or depth, config.heads or heads
    patch = config.patch or (16 if side > SMALL else max(2, side // 8))
    if side % patch or width % heads or width % 4:
        raise UserError(
            f"encoder: patches of {patch} must divide the input of {side} px, and {heads} heads and 4 the width {width}"
        )
    trunk: Any = VisionTransformer(
        img_size=side,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        weight_init="moco",
    )
    trunk.pos_embed.data.copy_(sincos_positions(side // patch, width))
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
    """Three layers with batch normalisation, the last one without affine parameters."""
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
