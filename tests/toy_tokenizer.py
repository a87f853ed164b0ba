"""A tokenizer without weights: each patch of 4 x 4 pixels becomes its mean color, three levels for each channel."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rcg.config import ComponentConfig
from rcg.core.contracts import Space
from rcg.core.registry import AUTOENCODERS

PATCH, LEVELS = 4, 3


class ToyTokenizerConfig(ComponentConfig):
    name: str = "toy_tokenizer"


class ToyTokenizer(nn.Module):
    Config = ToyTokenizerConfig

    def __init__(self, config, image_size):
        super().__init__()
        side = image_size // PATCH
        self.space = Space((side, side), vocab=LEVELS**3, id="toy_tokenizer")

    def encode(self, image):
        levels = (F.avg_pool2d(image, PATCH) * (LEVELS - 1)).round().long()  # (B, 3, h, w)
        return (levels * torch.tensor([LEVELS**2, LEVELS, 1]).view(3, 1, 1)).sum(1)

    def decode(self, latent):
        assert latent.dtype == torch.int64
        assert 0 <= latent.min() <= latent.max() < LEVELS**3
        levels = torch.stack([latent // LEVELS**2, latent // LEVELS % LEVELS, latent % LEVELS], dim=1)
        return F.interpolate(levels / (LEVELS - 1), scale_factor=PATCH)


@pytest.fixture(autouse=True, scope="module")
def tokenizer_has_a_name():
    """Let the tests of a module that imports this find the tokenizer by its name, and nobody else."""
    AUTOENCODERS.register(ToyTokenizer)
    yield
    AUTOENCODERS._classes.pop("toy_tokenizer")
