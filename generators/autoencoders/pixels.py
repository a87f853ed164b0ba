"""No autoencoder: the generator works on pixels in [-1, 1]."""

from __future__ import annotations

from torch import Tensor

from rcg.config import AutoencoderConfig
from rcg.core.contracts import Autoencoder, Space
from rcg.core.registry import AUTOENCODERS


class PixelsConfig(AutoencoderConfig):
    """Pixels as they are."""

    name: str = "pixels"


@AUTOENCODERS.register
class Pixels(Autoencoder):
    """Scales images from [0, 1] to [-1, 1] and back."""

    Config = PixelsConfig

    def __init__(self, config: PixelsConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        self.shape = (3, image_size, image_size)

    @property
    def space(self) -> Space:
        """Pixels `(3, H, W)`."""
        return Space(self.shape, id="pixels")

    def posterior(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to [-1, 1]."""
        return image * 2 - 1

    def decode(self, latent: Tensor) -> Tensor:
        """Map `(B, 3, H, W)` in [-1, 1] to images in [0, 1]; values outside are clamped."""
        return (latent.clamp(-1, 1) + 1) / 2
