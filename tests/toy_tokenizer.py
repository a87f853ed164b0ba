"""A tokenizer without weights: each patch of 4 x 4 pixels becomes its mean color, three levels for each channel.

The fixture `toy_autoencoder` registers it.
"""

import torch
from torch.nn import functional as F

from rcg.config import AutoencoderConfig
from rcg.core.contracts import Autoencoder, Space

PATCH, LEVELS = 4, 3


class ToyTokenizerConfig(AutoencoderConfig):
    name: str = "toy_tokenizer"


class ToyTokenizer(Autoencoder):
    Config = ToyTokenizerConfig

    def __init__(self, config, image_size):
        super().__init__(config, image_size)
        self.side = image_size // PATCH

    @property
    def space(self):
        return Space((self.side, self.side), vocab=LEVELS**3, id="toy_tokenizer")

    def posterior(self, image):
        levels = (F.avg_pool2d(image, PATCH) * (LEVELS - 1)).round().long()  # (B, 3, h, w)
        return (levels * torch.tensor([LEVELS**2, LEVELS, 1]).view(3, 1, 1)).sum(1)

    def decode(self, latent):
        assert latent.dtype == torch.int64
        assert 0 <= latent.min() <= latent.max() < LEVELS**3
        levels = torch.stack([latent // LEVELS**2, latent // LEVELS % LEVELS, latent % LEVELS], dim=1)
        return F.interpolate(levels / (LEVELS - 1), scale_factor=PATCH)
