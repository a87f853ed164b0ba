"""Base classes of encoders whose weights their authors published: a trunk of timm, perhaps a head, one file."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, get_args

import torch
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import Depth, EncoderConfig, Side, Width
from rcg.core import pretrained
from rcg.core.contracts import CatalogEntry, Encoder
from rcg.core.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_SIZE = 224
VITS = {"vit_tiny": (192, 12, 3), "vit_small": (384, 12, 6), "vit_base": (768, 12, 12), "vit_large": (1024, 24, 16)}
"""Width, depth and heads of each size."""
NORM: Any = partial(nn.LayerNorm, eps=1e-6)
"""The normalization of all these checkpoints."""


class PublishedConfig(EncoderConfig):
    """An encoder whose weights its authors published as a file."""

    weights: str
    """The file as published (.pth, .pth.tar or .safetensors), or `none` for random weights."""
    input_size: Side = IMAGENET_SIZE
    """Side that images are resized to."""


class ViTConfig(PublishedConfig):
    """A ViT whose dimensions may be set one by one."""

    arch: str = "vit_base"
    """Size of the trunk."""
    width: Width | None = None
    """Channels; null: of the arch."""
    depth: Depth | None = None
    """Blocks; null: of the arch."""
    heads: Width | None = None
    """Attention heads; null: of the arch."""
    patch: Side = 16
    """Side of a patch."""


class PublishedEncoder(Encoder):
    """Maps images `(B, 3, H, W)` in [0, 1] to `(B, width)`: the head's output, or the trunk's pooled features.

    Attributes:
        origin: where a person gets the weights, for the catalog.
        left_out: prefixes of the names in a file whose tensors are not part of the encoder.
        trunk: a ViT, BEiT or ResNet of timm without its classifier.
        head: the projection head; None where `feature` does not need it.
    """

    origin: ClassVar[str] = "give a file"
    left_out: ClassVar[tuple[str, ...]] = ()
    mean: Tensor
    std: Tensor

    def __init__(self, config: Any, image_size: int, load: bool = True) -> None:
        super().__init__(config, image_size)
        self.side: int = self.input_side(image_size)
        self.trunk, self.head = self.build()
        self.width = self.trunk.num_features
        if config.feature == "projector":
            # That of the head's last linear map, which a normalization may follow.
            self.width = [part for part in self.modules() if isinstance(part, nn.Linear)][-1].out_features
        self.grid = _grid(self.trunk, self.side)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        if load and config.weights not in (None, "none"):
            self._load(config.weights)

    def input_side(self, image_size: int) -> int:
        """Return the side that images of `image_size` pixels are resized to."""
        return int(self.config.input_size)

    def build(self) -> tuple[Any, nn.Module | None]:
        """Build the trunk, and the head if `feature` or pre-training needs it."""
        trunk = self.build_trunk()
        has_head = self.config.feature == "projector" or self.trainable
        return trunk, self.build_head(trunk.num_features) if has_head else None

    def build_trunk(self) -> Any:
        """Build the trunk of `self.config` for images of side `self.side`; by default a ViT."""
        return vit(self.config, VITS, self.side, self.config.patch)

    def build_head(self, width: int) -> nn.Module:
        """Build the head of the trunk's features `(B, width)`."""
        raise NotImplementedError

    def rename(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a published file under the names `trunk. ...` and `head. ...`, without `left_out`."""
        return {
            key if key.startswith("head.") else f"trunk.{key}": value
            for key, value in tensors.items()
            if not key.startswith(self.left_out)
        }

    @classmethod
    def catalog(cls) -> Iterator[CatalogEntry]:
        """List the sizes in which this encoder was published."""
        arch = cls.Config.model_fields.get("arch")
        sizes: list[dict[str, str]] = [{"arch": size} for size in get_args(arch.annotation)] if arch else [{}]
        for size in sizes:
            config = cls.Config(weights="none", **size)
            with torch.device("meta"):
                encoder = cls(config, IMAGENET_SIZE)
            name = ", ".join(f"{key}: {value}" for key, value in {"name": config.name, **size}.items())
            millions = round(sum(p.numel() for p in encoder.parameters()) / 1e6)
            yield CatalogEntry(name, encoder.width, encoder.side, millions, cls.license, cls.origin)

    def forward(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to representations `(B, width)`."""
        return self.project(image) if self.config.feature == "projector" else self._pooled(image)

    def project(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to the head's output `(B, P)`."""
        if self.head is None:
            return super().project(image)
        return self.head(self._pooled(image))

    def patch_features(self, image: Tensor) -> Tensor:
        """Return features on `grid`, row by row, `(B, N, D')`: patches of a ViT, the last map of a ResNet."""
        features: Tensor = self.trunk.forward_features(self._prepare(image))
        if features.ndim == 4:
            return features.flatten(2).transpose(1, 2)
        return features[:, self.trunk.num_prefix_tokens :]

    def drop_head(self) -> None:
        """Leave out the projection head."""
        self.head = None

    def _pooled(self, image: Tensor) -> Tensor:
        """Return the class token of a ViT, or the mean of a ResNet's last map, `(B, D)`."""
        features: Tensor = self.trunk.forward_features(self._prepare(image))
        return features.mean((2, 3)) if features.ndim == 4 else features[:, 0]

    def _prepare(self, image: Tensor) -> Tensor:
        """Normalize, then resize without antialiasing, as RCG's representations were computed.

        A ResNet in training takes augmented views of any size.
        """
        x = (image - self.mean) / self.std
        takes_any_size = self.training and isinstance(self.trunk, ResNet)
        if x.shape[-2:] != (self.side, self.side) and not takes_any_size:
            x = F.interpolate(x, (self.side, self.side), mode="bicubic", align_corners=False)
        return x

    def _load(self, path: str) -> None:
        """Load the published file; raises `UserError` if it does not fit."""
        tensors = self.rename(pretrained.read_weights(path))
        if self.head is None:
            tensors = {key: value for key, value in tensors.items() if not key.startswith("head.")}
        elif not any(key.startswith("head.") for key in tensors) and not tensors.keys().isdisjoint(self.state_dict()):
            if self.config.feature == "projector":
                raise UserError(f"{path} holds no projection head: set encoder.feature=backbone")
            # Only pre-training needs it; what is not used must not be random, for it is part of the encoder's identity.
            head = self.head.state_dict(prefix="head.")
            tensors = {**tensors, **{key: torch.zeros_like(value) for key, value in head.items()}}
        pretrained.fit(self, tensors, path)


def _grid(trunk: Any, side: int) -> tuple[int, int]:
    """Return rows and columns of the trunk's last features for images of `side` pixels."""
    if isinstance(trunk, ResNet):
        convolution: Any = trunk.conv1
        pooling = 1 if isinstance(trunk.maxpool, nn.Identity) else 2
        size = -(-side // (8 * convolution.stride[0] * pooling))  # the last three of the four stages halve the map
        return size, size
    return trunk.patch_embed.grid_size


def dimensions(config: Any, sizes: dict[str, tuple[int, int, int]]) -> dict[str, Any]:
    """Return the width, depth and heads of a ViT as timm calls them: those of its arch, or the config's own."""
    width, depth, heads = sizes[config.arch]
    return {"embed_dim": config.width or width, "depth": config.depth or depth, "num_heads": config.heads or heads}


def vit(config: Any, sizes: dict[str, tuple[int, int, int]], side: int, patch: int, **options: Any) -> Any:
    """Build timm's ViT with the epsilon of all these checkpoints.

    Args:
        config: names the `arch`, and perhaps `width`, `depth` and `heads`.
        sizes: width, depth and heads of each arch.
        side: side of the input in pixels.
        patch: side of a patch.
        options: further arguments of timm's class.

    Raises:
        UserError: the dimensions do not fit together.
    """
    size = dimensions(config, sizes)
    width, heads = size["embed_dim"], size["num_heads"]
    if side % patch or width % heads or width % 4:
        raise UserError(
            f"encoder: patches of {patch} must divide the input of {side} px, and {heads} heads and 4 the width {width}"
        )
    return VisionTransformer(img_size=side, patch_size=patch, num_classes=0, norm_layer=NORM, **size, **options)


def only(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, without it; all of them if there are none."""
    return {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)} or tensors


class StudentTeacherConfig(ViTConfig):
    """A ViT with DINO's head; only full checkpoints hold the head."""

    projector_hidden: Width = 2048
    """Hidden width of the head."""
    projector_dim: Width = 256
    """Width of the head's bottleneck, which is its output here."""


class StudentTeacher(PublishedEncoder):
    """Maps images to the teacher's class token, or to the bottleneck of its head: the base class of DINO and iBOT.

    It reads the `teacher` of a full checkpoint, or a file of the backbone alone, without the prototypes.
    """

    left_out = ("head.last_layer",)

    def build_head(self, width: int) -> nn.Module:
        """Build the layers before DINO's prototypes (Caron et al., 2021, Appendix C), without its normalization."""
        hidden, out = self.config.projector_hidden, self.config.projector_dim
        layers = (nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out))
        return nn.Sequential(OrderedDict(mlp=nn.Sequential(*layers)))

    def rename(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under our names: those of the backbone have a prefix in a full checkpoint."""
        return super().rename({key.removeprefix("backbone."): value for key, value in tensors.items()})
