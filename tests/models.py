"""Small untrained generative models: a DiT of pixels, a MAGE of tokens."""

import torch

from rcg.core.contracts import Space
from rcg.diffusion.model import build
from rcg.generators.dit import DiT, DiTConfig
from rcg.generators.mage import MAGE, MAGEConfig

PIXELS, TOKENS = Space((3, 8, 8)), Space((4, 4), vocab=12, id="tokens")


def condition_of(cond):
    """Return the `condition` whose space is `cond`."""
    if cond is None:
        return "none"
    return "representation" if cond.vocab is None else "class"


def dit(cond=None, data=PIXELS, **config):
    """Build a DiT whose zero-initialized layers are not zero."""
    torch.manual_seed(0)
    settings = {"width": 16, "depth": 1, "heads": 2, "patch": 4, "condition": condition_of(cond)}
    model = build(DiTConfig(**settings | config), DiT, data, cond)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


def mage(cond=None, data=TOKENS, **config):
    """Build a MAGE; its section names `toy_tokenizer`, which the fixture `toy_autoencoder` registers."""
    torch.manual_seed(0)
    sizes = {"width": 16, "depth": 1, "heads": 2, "decoder_depth": 1, "decoder_heads": 2}
    settings = {**sizes, "autoencoder": "toy_tokenizer", "condition": condition_of(cond)}
    return build(MAGEConfig(**settings | config), MAGE, data, cond)
