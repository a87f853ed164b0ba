"""MoCo v3: a ViT or ResNet trunk with its projector (Chen, Xie, He, ICCV 2021), published or trained in the run.

The loss is in `rcg/training/tasks/encoder.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from rcg.config import ORIGIN, Depth, EncoderConfig, Side, Width
from rcg.core import pretrained
from rcg.core.errors import UserError
from rcg.core.registry import ENCODERS
from rcg.encoders._published import IMAGENET_SIZE, VITS, PublishedEncoder, only, vit

MOCO_VITS = {**VITS, "vit_small": (384, 12, 12)}  # twice the usual number of heads
RESNETS: dict[str, Any] = {"resnet18": (BasicBlock, (2, 2, 2, 2)), "resnet50": (Bottleneck, (3, 4, 6, 3))}
SMALL = 64
"""Largest side of the inputs that get fine patches, or a stem that does not downsample."""


class MoCoV3Config(EncoderConfig):
    """A MoCo v3 encoder; without `weights` it is pre-trained in the run, at the size of its images."""

    name: str = "moco_v3"
    arch: Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "resnet18", "resnet50"] = "vit_base"
    """Trunk; small, base and large are the published ones."""
    width: Width | None = None
    """Channels of a ViT, or of a ResNet's first stage; null: of the arch."""
    depth: Depth | None = None
    """Blocks of a ViT, or of each of a ResNet's stages; null: of the arch."""
    heads: Width | None = None
    """Attention heads of a ViT; null: of the arch."""
    patch: Side | None = None
    """Side of a ViT's patches; null: 16, on small images an eighth of the side, or the nearest that divides."""
    input_size: Side | None = None
    """Side that images are resized to; null: 224 with weights, else that of the images."""
    projector_hidden: Width = 4096
    """Hidden width of the projector."""
    projector_dim: Width = 256
    """Width of the projector's output."""
    projector_layers: Annotated[Literal[2, 3] | None, ORIGIN] = None
    """Layers of the projector; null: 3, or as many as the file in `weights` has. Its authors give ViTs 3 and ResNets 2,
    but they throw the projector away, whereas its output is the representation here, as it is of RCG's ViTs."""
    feature: Literal["backbone", "projector"] = "projector"


@ENCODERS.register
class MoCoV3(PublishedEncoder):
    """Maps images to the projector's output, as in RCG, or to the class token of its ViT or the mean of its ResNet."""

    Config = MoCoV3Config
    license = "cc-by-nc-4.0"
    origin = "give a file, or train it"
    trainable = True

    def __init__(self, config: MoCoV3Config, image_size: int, load: bool = True) -> None:
        """Build the encoder, and load the weights that its config names if asked.

        Raises:
            UserError: the sizes do not fit together, or the weights do not fit.
        """
        if config.projector_layers is None:
            has_file = load and config.weights not in (None, "none")
            layers = _projector_layers(pretrained.read_weights(str(config.weights))) if has_file else 3
            config = config.model_copy(update={"projector_layers": layers})
        super().__init__(config, image_size, load)

    def input_side(self, image_size: int) -> int:
        """Return the side that images of `image_size` pixels are resized to."""
        return self.config.input_size or (image_size if self.config.weights is None else IMAGENET_SIZE)

    def build_trunk(self) -> Any:
        """Build a ViT or ResNet."""
        config = self.config
        if config.arch not in MOCO_VITS:
            return _resnet(config, self.side)
        if config.train.augment.size not in (None, self.side):
            raise UserError(
                f"encoder.train.augment.size is {config.train.augment.size}, but {config.arch} needs views of its own "
                f"{self.side} px: leave it out, or choose encoder.arch=resnet18"
            )
        patch = config.patch or default_patch(self.side)
        trunk = vit(config, MOCO_VITS, self.side, patch, weight_init="moco")
        trunk.pos_embed.data.copy_(sincos_positions(self.side // patch, trunk.embed_dim))
        trunk.pos_embed.requires_grad_(False)
        # A frozen patch projection keeps the training of ViTs stable (Section 4.1 of the paper).
        trunk.patch_embed.proj.requires_grad_(False)
        return trunk

    def build_head(self, width: int) -> nn.Module:
        """Build the projector: linear layers with batch normalization, the last one without affine parameters."""
        hidden, out = self.config.projector_hidden, self.config.projector_dim
        layers: list[nn.Module] = []
        for inputs in (width, hidden)[: self.config.projector_layers - 1]:
            layers += [nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, nn.Linear(hidden, out, bias=False), nn.BatchNorm1d(out, affine=False))

    def rename(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the base encoder, not its momentum copy; repair the misnamed keys of the published ViT-L."""
        if any(key.startswith("trunk.") for key in tensors):  # an encoder of a run
            return tensors
        base = {_repair(key): value for key, value in only("base_encoder.", tensors).items()}
        # The projector of the published ResNet-50 has the name of the classifier that it replaced.
        return super().rename({re.sub(r"^fc\.", "head.", key): value for key, value in base.items()})


def default_patch(side: int) -> int:
    """Return the side of patches that divides `side` px and is nearest to 16, on small images to an eighth of it."""
    wanted = 16 if side > SMALL else side / 8
    dividing = [patch for patch in range(2, side // 2 + 1) if side % patch == 0]
    return min(dividing, key=lambda patch: abs(patch - wanted), default=max(2, side // 8))


def sincos_positions(grid: int, width: int) -> Tensor:
    """Return MoCo v3's fixed positions `(1, 1 + grid * grid, width)`; the class token's is zero.

    Patch (i, j) = (n // grid, n % grid) has [sin(i w), cos(i w), sin(j w), cos(j w)], w_k = 10000^(-k / (width / 4)).
    """
    omega = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float32) / (width / 4))
    i, j = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * omega for axis in (i, j)]
    patches = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, width), patches])[None]


def _projector_layers(names: Iterable[str]) -> int:
    """Return the layers of the projector of a file: its third linear layer is number 6."""
    return 3 if any(re.search(r"(?:head|fc)\.6\.weight$", name) for name in names) else 2


def _resnet(config: MoCoV3Config, side: int) -> Any:
    block, layers = RESNETS[config.arch]
    width = config.width or 64
    if width % 2:
        raise UserError(f"encoder.width is {width}; the first stage of a ResNet needs an even number of channels")
    if config.depth:
        layers = (config.depth,) * 4
    channels = (width, 2 * width, 4 * width, 8 * width)
    trunk: Any = ResNet(block, layers, num_classes=0, channels=channels, stem_type="deep", stem_width=width // 2)
    # timm sizes the other layers after its deep stem, which is replaced by ResNet's own, or by one that does not
    # downsample small images.
    if side <= SMALL:
        trunk.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
        trunk.maxpool = nn.Identity()
    else:
        trunk.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
    return trunk


def _repair(key: str) -> str:
    """Undo the misnaming in the published ViT-L file: `blocks.13.norm13` -> norm1, `blocks.14.mlp.fc14` -> fc2."""
    return re.sub(r"^(blocks\.1[34]\.(?:mlp\.)?(?:norm|fc))1([34])\.", lambda m: f"{m[1]}{'12'[m[2] == '4']}.", key)
