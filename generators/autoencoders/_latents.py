"""Continuous latents: one shift and one scale that bring them to unit variance, and draws from a posterior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rcg.core.rng import draws


class Standardizer(nn.Module):
    """Standardizes latents by one mean and one std, or those of each channel, measured on data in training."""

    mean: Tensor  # () or (C, 1, 1)
    std: Tensor

    def __init__(self, mean: float = 0.0, std: float = 1.0, channels: int | None = None) -> None:
        super().__init__()
        shape = () if channels is None else (channels, 1, 1)
        self.register_buffer("mean", torch.full(shape, mean))
        self.register_buffer("std", torch.full(shape, std))

    def forward(self, z: Tensor) -> Tensor:
        """Standardize latents."""
        return (z - self.mean) / self.std

    def posterior(self, mean: Tensor, std: Tensor) -> Tensor:
        """Standardize normals of means and stds `(B, C, h, w)`; return both, `(B, 2C, h, w)`."""
        return torch.cat([self(mean), std / self.std], dim=1)

    def undo(self, latent: Tensor) -> Tensor:
        """Return latents before standardization."""
        return latent * self.std + self.mean


def noised(latent: Tensor, amount: float) -> Tensor:
    """Add noise to latents `(B, C, h, w)`, whose std is |N(0, amount)| for each image, in units of its own latents'.

    Source: RAE (Zheng et al., 2025), where latents have unit variance.
    """
    if amount == 0:
        return latent
    share = draws().normal((len(latent), 1, 1, 1), latent.device).abs() * amount
    noise = draws().normal(latent.shape, latent.device).to(latent.dtype)
    return latent + share * latent.detach().std((1, 2, 3), keepdim=True) * noise


def draw_latents(posterior: Tensor) -> Tensor:
    """Draw `(B, C, h, w)` from independent normals of means and stds `(B, 2C, h, w)`."""
    mean, std = posterior.chunk(2, dim=1)
    return mean + std * draws().normal(mean.shape, mean.device).to(mean.dtype)


def mean_latents(posterior: Tensor) -> Tensor:
    """Return the means `(B, C, h, w)` of means and stds `(B, 2C, h, w)`."""
    return posterior.chunk(2, dim=1)[0]


def published_scale(scale: float) -> dict[str, Tensor]:
    """Return the state of a `standardize` that multiplies by `scale`, as published files do not hold it."""
    return {"standardize.mean": torch.tensor(0.0), "standardize.std": torch.tensor(1 / scale)}
