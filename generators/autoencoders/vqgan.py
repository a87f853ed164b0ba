"""VQGAN as a tokenizer: images <-> integers on a grid (Esser et al., CVPR 2021; MaskGIT, Chang et al., CVPR 2022)."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from pydantic import PositiveInt
from rcg.generators.autoencoders._codes import Quantized, QuantizedConfig
from torch import Tensor

from rcg.core.contracts import Space
from rcg.core.registry import AUTOENCODERS
from rcg.encoding.autoencoder import identity


class VQGANConfig(QuantizedConfig):
    """A tokenizer; the defaults are those of MAGE's, which makes 16 x 16 tokens of 256 px."""

    name: str = "vqgan"
    channels: PositiveInt = 256

    published: ClassVar[tuple[int, ...]] = (1, 1, 2, 2, 4)


@AUTOENCODERS.register
class VQGAN(Quantized):
    """Maps images to tokens `(B, h, w)`, row by row, and back."""

    Config = VQGANConfig

    @cached_property
    def space(self) -> Space:
        """Tokens, `(h, w)` of a vocabulary; the weights must not change any more."""
        return Space((self.side, self.side), vocab=self.quantize.vocab, id=identity(self))

    def posterior(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to tokens, int64 `(B, h, w)`."""
        return self.codes(self.analyze(image))

    def draw(self, posterior: Tensor) -> Tensor:
        """Return the tokens as they are."""
        return posterior

    def encode(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to tokens, int64 `(B, h, w)`."""
        return self.posterior(image)

    def decode(self, latent: Tensor) -> Tensor:
        """Map tokens `(B, h, w)` to images `(B, 3, H, W)` in [0, 1]."""
        return self.paint(latent)
