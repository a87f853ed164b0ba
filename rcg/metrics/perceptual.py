"""Distances of images in the feature spaces of frozen networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VGG16_Weights, vgg16

from rcg.core import pretrained as weights
from rcg.core.errors import UserError

VGG_LAYERS = (3, 8, 15, 22, 29)
"""VGG-16's layers that LPIPS compares: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EncoderDistance(nn.Module):
    """Compares images by an encoder's patch features where it has them, else by its representations."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)

    def forward(self, image: Tensor, real: Tensor) -> Tensor:
        """Return the mean distance of `image` and `real` `(B, 3, H, W)` in [0, 1], a scalar in [0, 4]."""
        with torch.no_grad():
            expected = self._features(real)
        return unit_distance(self._features(image), expected)

    def _features(self, image: Tensor) -> Tensor:
        features: Tensor = self.encoder(image) if self.encoder.grid is None else self.encoder.tokens(image)
        return features.flatten(0, -2)


class VGGDistance(nn.Module):
    """LPIPS without its learned weights (Zhang et al., CVPR 2018): unit-length VGG-16 features of five layers."""

    mean: Tensor
    std: Tensor

    def __init__(self, path: str | None) -> None:
        """Read VGG-16 from `path`, or from torch's cache; nothing is downloaded.

        Raises:
            UserError: the file is not there, or does not fit.
        """
        super().__init__()
        file = Path(path) if path else vgg_file()
        if not file.is_file():
            raise UserError(
                f"the perceptual loss asks for VGG-16, but there is no {file}: download {VGG16_Weights.DEFAULT.url} "
                f"and name it as generator.autoencoder.train.vgg, or set perceptual to encoder or none"
            )
        network = vgg16()
        weights.fit(network, weights.state_dict(weights.read(file)), file)
        self.layers = network.features[: VGG_LAYERS[-1] + 1].eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(self, image: Tensor, real: Tensor) -> Tensor:
        """Return the mean distance of `image` and `real` `(B, 3, H, W)` in [0, 1], a scalar in [0, 20]."""
        with torch.no_grad():
            expected = self._features(real)
        pairs = zip(self._features(image), expected, strict=True)
        return torch.stack([unit_distance(a, b) for a, b in pairs]).sum()

    def _features(self, image: Tensor) -> list[Tensor]:
        found, x = [], (image - self.mean) / self.std
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in VGG_LAYERS:
                # The next layers may work in place.
                found.append(x.movedim(1, -1).flatten(0, -2).clone())
        return found


def unit_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared distance of the directions of `a` and `b` `(M, D)`, a scalar in [0, 4]."""
    return (F.normalize(a.float(), dim=-1) - F.normalize(b.float(), dim=-1)).square().sum(-1).mean()


def vgg_file() -> Path:
    """Return where torchvision keeps VGG-16's weights once they are downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG16_Weights.DEFAULT.url).name
