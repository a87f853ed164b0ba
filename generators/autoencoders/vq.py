"""A VQ autoencoder with continuous latents, as latent diffusion uses it: quantized only when they are decoded."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat
from torch import Tensor

from rcg.core.registry import AUTOENCODERS
from rcg.generators.autoencoders._codes import QuantizedAutoencoder, QuantizedConfig, QuantizerSection
from rcg.generators.autoencoders._latents import Standardizer, published_scale
from rcg.generators.autoencoders._quantizers import NearestConfig


class VQConfig(QuantizedConfig):
    """A VQ autoencoder; the defaults are those of LDM-8's VQ-f8 (Rombach et al., CVPR 2022)."""

    name: str = "vq"
    lineage: Literal["maskgit", "taming"] = "taming"
    quantizer: QuantizerSection = NearestConfig(codes=16384)
    scale: PositiveFloat = 1.0
    """Factor of the latents of a published file; an autoencoder that is trained here measures its own."""

    published_multipliers: ClassVar[tuple[int, ...]] = (1, 2, 2, 4)
    published_attention: ClassVar[tuple[int, ...]] = (8,)


@AUTOENCODERS.register
class VQ(QuantizedAutoencoder):
    """Maps images to latents `(B, C, h, w)` before quantization, and quantized ones to images."""

    Config = VQConfig
    config: VQConfig
    standardize: Standardizer

    def __init__(self, config: VQConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        self.standardize = Standardizer()

    def posterior(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to latents `(B, C, h, w)`."""
        return self.standardize(self.analyze(image))

    def decode(self, latent: Tensor) -> Tensor:
        """Quantize latents `(B, C, h, w)` and map them to images `(B, 3, H, W)` in [0, 1]."""
        return self.decode_codes(self.codes(self.standardize.undo(latent.float())))

    def rename(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a published file under our names."""
        return super().rename(tensors) | published_scale(self.config.scale)
