"""What published checkpoints have in common: a trunk of timm, perhaps a head, ImageNet's constants, one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any, get_args

import timm
import torch
from pydantic import PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import EncoderConfig
from rcg.core import pretrained as weights
from rcg.core.contracts import Listing
from rcg.core.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VITS = {"vit_tiny": (192, 12, 3), "vit_small": (384, 12, 6), "vit_base": (768, 12, 12), "vit_large": (1024, 24, 16)}


class PublishedConfig(EncoderConfig):
    """An encoder whose weights its authors published as a file."""

    weights: str
    """The file as published (.pth, .pth.tar or .safetensors), or `none` for random weights."""
    input_size: PositiveInt = 224
    """Side that images are resized to."""


class ViTConfig(PublishedConfig):
    """A ViT whose sizes may be given one by one."""

    arch: str = "vit_base"
    """Size of the trunk."""
    width: PositiveInt | None = None
    """Channels; none: of the arch."""
    depth: PositiveInt | None = None
    """Blocks; none: of the arch."""
    heads: PositiveInt | None = None
    """Attention heads; none: of the arch."""
    patch: PositiveInt = 16
    """Side of a patch."""


class PublishedEncoder(nn.Module, ABC):
    """Maps images `(B, 3, H, W)` in [0, 1] to `(B, width)`: the head's output, or the trunk's pooled features.

    Attributes:
        width: D of the representation.
        side: side of the square that the trunk sees.
        grid: rows and columns of `tokens`.
        license: license of the published weights.
        origin: where a person gets the weights.
    """

    license = ""
    origin = "give a file"
    mean: Tensor
    std: Tensor

    def __init__(self, config: Any, trunk: Any, head: nn.Module | None, head_width: int, side: int) -> None:
        super().__init__()
        self.config, self.side = config, side
        self.trunk, self.head = trunk, head
        self.width = trunk.num_features if config.feature == "backbone" else head_width
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    @abstractmethod
    def rename(self, found: dict[str, Any]) -> dict[str, Tensor]:
        """Return the tensors of a published file under the names `trunk. ...` and `head. ...`."""

    @classmethod
    def catalog(cls) -> Iterator[Listing]:
        """List the sizes in which this encoder was published."""
        schema: Any = cls.Config  # type: ignore[attr-defined]
        arch = schema.model_fields.get("arch")
        for size in get_args(arch.annotation) if arch else ("resnet50",):
            with torch.device("meta"):
                encoder = cls(schema(weights="none", **({"arch": size} if arch else {})))  # type: ignore[call-arg]
            millions = round(sum(p.numel() for p in encoder.parameters()) / 1e6)
            name = f"name: {encoder.config.name}" + (f", arch: {size}" if arch else "")
            yield Listing(name, encoder.width, encoder.side, millions, cls.license, cls.origin)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of `tokens`."""
        if hasattr(self.trunk, "patch_embed"):
            rows, columns = self.trunk.patch_embed.grid_size
            return rows, columns
        stem = self.trunk.conv1.stride[0] * (1 if isinstance(self.trunk.maxpool, nn.Identity) else 2)
        size = -(-self.side // (8 * stem))  # the last three of the four stages halve the map
        return size, size

    def forward(self, image: Tensor) -> Tensor:
        """Return the representation `(B, width)`."""
        return self.project(image) if self.config.feature == "projector" else self._pooled(image)

    def project(self, image: Tensor) -> Tensor:
        """Return the head's output `(B, P)`."""
        assert self.head is not None
        projected: Tensor = self.head(self._pooled(image))
        return projected

    def tokens(self, image: Tensor) -> Tensor:
        """Return features on `grid`, row by row, `(B, N, D')`: patches of a ViT, the last map of a ResNet."""
        features: Tensor = self.trunk.forward_features(self._prepare(image))
        if features.ndim == 4:
            return features.flatten(2).transpose(1, 2)
        return features[:, self.trunk.num_prefix_tokens :]

    def fill(self, load: bool) -> None:
        """Load the published file, if the config names one; raises `UserError` where it does not fit."""
        path = self.config.weights
        if not load or path in (None, "none"):
            return
        tensors = self.rename(weights.read(path))
        if self.head is None:
            tensors = {key: value for key, value in tensors.items() if not key.startswith("head.")}
        elif not any(key.startswith("head.") for key in tensors):
            raise UserError(f"{path} holds no projection head: set encoder.feature=backbone")
        weights.fit(self, tensors, path)

    def _pooled(self, image: Tensor) -> Tensor:
        """Return the class token of a ViT, or the mean of a ResNet's last map, `(B, D)`."""
        features: Tensor = self.trunk.forward_features(self._prepare(image))
        return features.mean((2, 3)) if features.ndim == 4 else features[:, 0]

    def _prepare(self, image: Tensor) -> Tensor:
        """Normalize, then resize without antialiasing, as RCG's representations were computed.

        Convolutions in training take views of any size as they are.
        """
        x = (image - self.mean) / self.std
        as_is = self.training and not hasattr(self.trunk, "patch_embed")
        if x.shape[-2:] != (self.side, self.side) and not as_is:
            x = F.interpolate(x, (self.side, self.side), mode="bicubic", align_corners=False)
        return x


def vit(config: Any, sizes: dict[str, tuple[int, int, int]], side: int, patch: int, **more: Any) -> Any:
    """Build timm's ViT with the epsilon of all these checkpoints; sizes that do not fit raise `UserError`."""
    width, depth, heads = sizes[config.arch]
    width, depth, heads = config.width or width, config.depth or depth, config.heads or heads
    if side % patch or width % heads or width % 4:
        raise UserError(
            f"encoder: patches of {patch} must divide the input of {side} px, and {heads} heads and 4 the width {width}"
        )
    return VisionTransformer(
        img_size=side,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        **more,
    )


def resnet50() -> Any:
    """Build ResNet-50 as torchvision names it, without its classifier."""
    return timm.create_model("resnet50", num_classes=0)


def prefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put `trunk.` before all names but those of the head."""
    return {key if key.startswith("head.") else f"trunk.{key}": value for key, value in tensors.items()}


class DINOHead(nn.Module):
    """The three layers before DINO's prototypes (Caron et al., 2021, Appendix C), without the final normalization."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, dim)` to `(B, out)`."""
        projected: Tensor = self.mlp(x)
        return projected


class StudentTeacherConfig(ViTConfig):
    """A ViT with DINO's head; only its authors' full checkpoints hold the head."""

    projector_hidden: PositiveInt = 2048
    """Hidden width of the head."""
    projector_dim: PositiveInt = 256
    """Width of the head's bottleneck, which is its output here."""


class StudentTeacher(PublishedEncoder):
    """Maps images to the teacher's class token, or to the bottleneck of its head; DINO and iBOT share it."""

    def __init__(self, config: Any, image_size: int | None = None, load: bool = True) -> None:
        trunk = vit(config, VITS, config.input_size, config.patch)
        head = None
        if config.feature == "projector":
            head = DINOHead(trunk.num_features, config.projector_hidden, config.projector_dim)
        super().__init__(config, trunk, head, config.projector_dim, config.input_size)
        self.fill(load)

    def rename(self, found: dict[str, Any]) -> dict[str, Tensor]:
        """Read the `teacher` of a full checkpoint, or a file with the backbone alone; leave out the prototypes."""
        tensors = weights.state_dict(found["teacher"] if isinstance(found.get("teacher"), dict) else found)
        bare = {key.removeprefix("backbone."): value for key, value in tensors.items()}
        return prefixed({key: value for key, value in bare.items() if not key.startswith("head.last_layer")})
