"""The KL-regularized autoencoder of latent diffusion and Stable Diffusion (Rombach et al., CVPR 2022)."""

from __future__ import annotations

from functools import cached_property

import torch
from pydantic import PositiveFloat
from rcg.generators.autoencoders._conv import TAMING, ConvAutoencoder, ConvConfig
from rcg.generators.autoencoders._latents import Standardizer, draw
from torch import Tensor

from rcg.core.contracts import Reconstruction, Space
from rcg.core.registry import AUTOENCODERS
from rcg.encoding.autoencoder import identity


class KLConfig(ConvConfig):
    """A variational autoencoder; the defaults are those of Stable Diffusion's."""

    name: str = "kl"
    kl_weight: PositiveFloat = 1e-6
    """Weight of the divergence from the standard normal, summed over an image as its squared error would be."""
    scale: PositiveFloat = 0.18215
    """Factor of the latents of a published file; an autoencoder that is trained here measures its own."""


@AUTOENCODERS.register
class KL(ConvAutoencoder):
    """Maps images to random latents `(B, C, h, w)`, and latents to images."""

    Config = KLConfig

    def __init__(self, config: KLConfig, image_size: int) -> None:
        super().__init__(config, image_size, TAMING, outputs=2 * config.channels)
        self.standardize = Standardizer()

    @cached_property
    def space(self) -> Space:
        """Latents `(C, h, w)`; the weights must not change any more."""
        return Space((self.config.channels, self.side, self.side), id=identity(self))

    def forward(self, image: Tensor) -> Reconstruction:
        """Reconstruct images `(B, 3, H, W)` in [0, 1] from latents drawn once, with gradients."""
        moments = self.moments(image)
        mean, std = moments.chunk(2, dim=1)
        divergence = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum()
        # The other losses are means over pixels, the published weight belongs to sums over them.
        losses = {"kl": self.config.kl_weight * divergence / image.numel()}
        return Reconstruction(self.synthesize(draw(moments)), losses, None)

    def moments(self, image: Tensor) -> Tensor:
        """Return means and deviations `(B, 2C, h, w)` before standardization."""
        mean, log_variance = self.analyze(image).chunk(2, dim=1)
        return torch.cat([mean, (0.5 * log_variance.clamp(-30, 20)).exp()], dim=1)

    def posterior(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to means and deviations `(B, 2C, h, w)` of standardized latents."""
        mean, std = self.moments(image).chunk(2, dim=1)
        return torch.cat([self.standardize(mean), std / self.standardize.std], dim=1)

    def draw(self, posterior: Tensor) -> Tensor:
        """Draw latents `(B, C, h, w)`."""
        return draw(posterior)

    def encode(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to random latents `(B, C, h, w)` of unit variance over the data."""
        return draw(self.posterior(image))

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents `(B, C, h, w)` to images `(B, 3, H, W)` in [0, 1]; what lies outside is cut off."""
        return self.synthesize(self.standardize.undo(latent)).clamp(0, 1)

    def rename(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a published file, of the original or of diffusers' layout, under our names."""
        scaled = {"standardize.mean": torch.tensor(0.0), "standardize.std": torch.tensor(1 / self.config.scale)}
        return self.published(found) | scaled
