"""The KL-regularized autoencoder of latent diffusion and Stable Diffusion (Rombach et al., CVPR 2022)."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor

from rcg.core.contracts import Reconstruction
from rcg.core.registry import AUTOENCODERS
from rcg.generators.autoencoders._conv import TAMING, ConvAutoencoder, ConvConfig
from rcg.generators.autoencoders._latents import Standardizer, draw_latents, mean_latents, noised, published_scale


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
    standardize: Standardizer

    def __init__(self, config: KLConfig, image_size: int) -> None:
        super().__init__(config, image_size, TAMING, outputs=2 * config.channels)
        self.standardize = Standardizer()

    def forward(self, image: Tensor) -> Reconstruction:
        """Reconstruct images `(B, 3, H, W)` in [0, 1] from latents drawn once, with gradients."""
        moments = self.moments(image)
        mean, std = moments.chunk(2, dim=1)
        divergence = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum()
        # The other losses are means over pixels, the published weight belongs to sums over them.
        losses = {"kl": self.config.kl_weight * divergence / image.numel()}
        latent = draw_latents(moments)
        noise = self.config.train.decoder_noise if self.training else 0.0
        return Reconstruction(self.synthesize(noised(latent, noise)), losses, None, latent)

    def moments(self, image: Tensor) -> Tensor:
        """Return means and stds `(B, 2C, h, w)` before standardization."""
        mean, log_variance = self.analyze(image).chunk(2, dim=1)
        return torch.cat([mean, (0.5 * log_variance.clamp(-30, 20)).exp()], dim=1)

    def posterior(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to means and stds `(B, 2C, h, w)` of standardized latents."""
        return self.standardize.posterior(*self.moments(image).chunk(2, dim=1))

    def draw(self, posterior: Tensor) -> Tensor:
        """Draw latents `(B, C, h, w)` of unit variance over the data."""
        return draw_latents(posterior)

    def mean(self, posterior: Tensor) -> Tensor:
        """Return mean latents `(B, C, h, w)`."""
        return mean_latents(posterior)

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents `(B, C, h, w)` to images `(B, 3, H, W)` in [0, 1]; values outside are clamped."""
        return self.synthesize(self.standardize.undo(latent)).clamp(0, 1)

    def rename(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a published file, of the original or of diffusers' layout, under our names."""
        return super().rename(tensors) | published_scale(self.config.scale)
