"""What continuous latents have in common: one shift and one scale that bring them to unit variance."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardizer(nn.Module):
    """Standardizes latents by one mean and one deviation, measured on data when the autoencoder was trained."""

    mean: Tensor  # ()
    std: Tensor  # ()

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, z: Tensor) -> Tensor:
        """Standardize."""
        return (z - self.mean) / self.std

    def undo(self, latent: Tensor) -> Tensor:
        """Return what was standardized."""
        return latent * self.std + self.mean


def draw(posterior: Tensor) -> Tensor:
    """Draw `(B, C, h, w)` from independent normals whose means and deviations are `(B, 2C, h, w)`."""
    mean, std = posterior.chunk(2, dim=1)
    return mean + std * torch.randn_like(mean)
