"""The perceptual distance by which results of editing are compared with their originals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.metrics.perceptual import EncoderDistance, PerceptualDistance, VGGDistance
from rcg.pipeline import Pipeline


@dataclass(frozen=True)
class ImageDistance:
    """A perceptual distance, image by image; lower is more alike.

    Attributes:
        name: in words.
        network: computes it.
        device: of the network.
    """

    name: str
    network: PerceptualDistance
    device: torch.device

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances `(B,)`, on the CPU, of images `(B, 3, S, S)` in [0, 1]."""
        pairs = zip(a.to(self.device).split(1), b.to(self.device).split(1), strict=True)
        return torch.stack([self.network(*pair) for pair in pairs]).cpu()


def open_distance(pipeline: Pipeline) -> ImageDistance:
    """Return the distance in VGG-16 if torch's cache has its weights, else that in the pipeline's own encoder."""
    device = pipeline.device
    try:
        return ImageDistance("LPIPS without learned weights (VGG-16)", VGGDistance(None).to(device), device)
    except UserError:
        encoder = pipeline.representation.encoder
        return ImageDistance(f"in the space of {encoder.config.name}", EncoderDistance(encoder), device)
