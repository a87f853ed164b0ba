"""No first stage: the generator works on pixels in [-1, 1]."""

from __future__ import annotations

from torch import Tensor, nn

from rcg.config import ComponentConfig
from rcg.core.contracts import Space
from rcg.core.registry import AUTOENCODERS


class PixelsConfig(ComponentConfig):
    """Pixels as they are."""

    name: str = "pixels"


@AUTOENCODERS.register
class Pixels(nn.Module):
    """Scales images from [0, 1] to [-1, 1] and back."""

    Config = PixelsConfig

    def __init__(self, config: PixelsConfig, image_size: int) -> None:
        super().__init__()
        self.space = Space((3, image_size, image_size), id="pixels")

    def encode(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to [-1, 1]."""
        return image * 2 - 1

    def decode(self, latent: Tensor) -> Tensor:
        """Map `(B, 3, H, W)` in [-1, 1] to images in [0, 1]; what lies outside is cut off."""
        return (latent.clamp(-1, 1) + 1) / 2
