"""VQGAN as a tokenizer: images <-> integers on a grid (Esser et al., CVPR 2021; MaskGIT, Chang et al., CVPR 2022)."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from torch import Tensor

from rcg.config import Width
from rcg.core.contracts import Space
from rcg.core.registry import AUTOENCODERS
from rcg.encoding.autoencoder import space_id
from rcg.generators.autoencoders._codes import QuantizedAutoencoder, QuantizedConfig


class VQGANConfig(QuantizedConfig):
    """A tokenizer; the defaults are those of MAGE's, which makes 16 x 16 tokens of 256 px."""

    name: str = "vqgan"
    channels: Width = 256

    published_multipliers: ClassVar[tuple[int, ...]] = (1, 1, 2, 2, 4)


@AUTOENCODERS.register
class VQGAN(QuantizedAutoencoder):
    """Maps images to tokens `(B, h, w)`, row by row, and back."""

    Config = VQGANConfig

    @cached_property
    def space(self) -> Space:
        """Tokens, `(h, w)` of a vocabulary; the weights must not change any more."""
        return Space((self.side, self.side), vocab=self.vocab, id=space_id(self))

    def posterior(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to tokens, int64 `(B, h, w)`."""
        return self.codes(self.analyze(image))

    def decode(self, latent: Tensor) -> Tensor:
        """Map tokens `(B, h, w)` to images `(B, 3, H, W)` in [0, 1]."""
        return self.decode_codes(latent)
