"""A VQ autoencoder with continuous latents, as latent diffusion uses it: quantized only when they are decoded."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat
from rcg.generators.autoencoders._codes import Bottleneck, Quantized, QuantizedConfig
from rcg.generators.autoencoders._latents import Standardizer
from rcg.generators.autoencoders._quantizers import NearestConfig
from torch import Tensor

from rcg.core.contracts import Space
from rcg.core.registry import AUTOENCODERS
from rcg.encoding.autoencoder import identity


class VQConfig(QuantizedConfig):
    """A VQ autoencoder; the defaults are those of LDM-8's VQ-f8 (Rombach et al., CVPR 2022)."""

    name: str = "vq"
    lineage: Literal["maskgit", "taming"] = "taming"
    quantizer: Bottleneck = NearestConfig(codes=16384)
    scale: PositiveFloat = 1.0
    """Factor of the latents of a published file; an autoencoder that is trained here measures its own."""

    published: ClassVar[tuple[int, ...]] = (1, 2, 2, 4)
    published_attention: ClassVar[tuple[int, ...]] = (8,)


@AUTOENCODERS.register
class VQ(Quantized):
    """Maps images to latents `(B, C, h, w)` before quantization, and quantized ones to images."""

    Config = VQConfig

    def __init__(self, config: VQConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        self.scale = config.scale
        self.standardize = Standardizer()

    @cached_property
    def space(self) -> Space:
        """Latents `(C, h, w)`; the weights must not change any more."""
        return Space((self.config.channels, self.side, self.side), id=identity(self))

    def posterior(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to latents `(B, C, h, w)`."""
        latent: Tensor = self.standardize(self.analyze(image))
        return latent

    def draw(self, posterior: Tensor) -> Tensor:
        """Return the latents as they are."""
        return posterior

    def encode(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to latents `(B, C, h, w)`."""
        return self.posterior(image)

    def decode(self, latent: Tensor) -> Tensor:
        """Quantize latents `(B, C, h, w)` and map them to images `(B, 3, H, W)` in [0, 1]."""
        return self.paint(self.codes(self.standardize.undo(latent.float())))

    def rename(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a published file under our names."""
        scaled = {"standardize.mean": torch.tensor(0.0), "standardize.std": torch.tensor(1 / self.scale)}
        return super().rename(found) | scaled
