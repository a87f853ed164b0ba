"""Perceptual distances: distances of images in the feature space of a frozen network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.core import pretrained
from rcg.core.contracts import Encoder
from rcg.core.errors import UserError

VGG_LAYERS = (3, 8, 15, 22, 29)
"""VGG-16's layers that LPIPS compares: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PerceptualDistance(nn.Module):
    """Base class: the sum of the `unit_distance` of one or more layers of a frozen network."""

    def forward(self, image: Tensor, real: Tensor) -> Tensor:
        """Return the mean distance of `image` and `real` `(B, 3, H, W)` in [0, 1], a scalar; `real` has no gradient."""
        with torch.no_grad():
            expected = self._features(real)
        pairs = zip(self._features(image), expected, strict=True)
        return torch.stack([unit_distance(a, b) for a, b in pairs]).sum()

    def _features(self, image: Tensor) -> list[Tensor]:
        """Return the features `(M, D)` of each layer."""
        raise NotImplementedError


class EncoderDistance(PerceptualDistance):
    """Compares images by an encoder's patch features, or by its representations if it has none.

    Distances are in [0, 4].
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)

    def _features(self, image: Tensor) -> list[Tensor]:
        features = self.encoder(image) if self.encoder.grid is None else self.encoder.patch_features(image)
        return [features.flatten(0, -2)]


class VGGDistance(PerceptualDistance):
    """LPIPS without its learned weights (Zhang et al., CVPR 2018): unit-length VGG-16 features of five layers.

    Distances are in [0, 20].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, path: str | None) -> None:
        """Read VGG-16 from `path`, or from torch's cache; nothing is downloaded.

        Raises:
            UserError: the file is missing, or does not fit.
        """
        from torchvision.models import VGG16_Weights, vgg16

        super().__init__()
        url = VGG16_Weights.DEFAULT.url
        file = Path(path) if path else Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
        if not file.is_file():
            raise UserError(
                f"the perceptual loss asks for VGG-16, but there is no {file}: download {url} "
                f"and name it as generator.autoencoder.train.vgg, or set perceptual to encoder or none"
            )
        network = vgg16()
        pretrained.fit(network, pretrained.read_weights(file), file)
        self.layers = network.features[: VGG_LAYERS[-1] + 1].eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def _features(self, image: Tensor) -> list[Tensor]:
        x = (image - self.mean) / self.std
        features = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in VGG_LAYERS:
                features.append(x.movedim(1, -1).flatten(0, -2).clone())  # the next layers may work in place
        return features


def unit_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared distance of `a` and `b` `(M, D)`, scaled to unit length, a scalar in [0, 4]."""
    return (F.normalize(a.float(), dim=-1) - F.normalize(b.float(), dim=-1)).square().sum(-1).mean()
