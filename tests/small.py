"""The smallest settings of every component, and parts of it that are built from them."""

import torch

from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Space
from rcg.core.registry import AUTOENCODERS, ENCODERS, GENERATORS, NETWORKS
from rcg.diffusion.model import build, model_part, restore
from rcg.encoding.autoencoder import autoencoder_part, build_autoencoder, restore_autoencoder
from rcg.encoding.encoder import build_encoder, encoder_part, restore_encoder

_VIT = {"width": 16, "depth": 1, "heads": 2, "patch": 8, "input_size": 32, "weights": "none"}
ENCODER = {
    **dict.fromkeys(["data2vec", "deit", "dino", "ibot", "msn"], _VIT),
    **{name: {"input_size": 32, "weights": "none"} for name in ("swav", "vicreg")},
    "moco_v3": {"arch": "resnet18", "width": 4, "depth": 1, "projector_hidden": 8, "projector_dim": 6},
    "semantic": {"width": 16, "multipliers": [1, 2], "blocks": 1, "dim": 6},
    "timm_model": {"model": "resnet10t", "weights": "none", "input_size": 32},
}
_CONV = {"width": 32, "multipliers": [1, 1], "blocks": 1, "channels": 4, "attention": [2]}
_NETWORK = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [32, 32],
}
AUTOENCODER = {
    "vqgan": {**_CONV, "quantizer": {"codes": 16}},
    "vq": {**_CONV, "quantizer": {"name": "fsq", "levels": [3, 3, 3, 3]}},
    "kl": _CONV,
    "diffusers": {"network": _NETWORK},
    "rae": {
        "width": 16,
        "depth": 1,
        "heads": 2,
        "encoder": {"name": "moco_v3", **ENCODER["moco_v3"], "weights": "none", "input_size": 16},
    },
}
GENERATOR = {
    "dit": {"width": 16, "depth": 2, "heads": 2, "patch": 4},
    "adm": {"width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [8]},
    "ldm": {"width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [8]},
    "mage": {"width": 16, "depth": 2, "heads": 2, "decoder_depth": 2, "decoder_heads": 2},
}
"""A small network of each kind for images of 16 px, or 4 x 4 tokens."""
NETWORK = {"width": 32, "depth": 3}
PIXELS, TOKENS, VECTORS = Space((3, 16, 16)), Space((4, 4), vocab=12, id="tokens"), Space((6,))
KINDS = {"encoder": ENCODERS, "autoencoder": AUTOENCODERS, "rdm": NETWORKS, "generator": GENERATORS}
COMPONENTS = [(kind, name) for kind, registry in KINDS.items() for name in registry.names()]


def make_part(kind: str, name: str) -> Part:
    """Build a small component with random weights, and describe it as a part."""
    torch.manual_seed(0)
    component = KINDS[kind].get(name)
    if kind == "encoder":
        return encoder_part(build_encoder(component.Config(**ENCODER.get(name, {})), 32), Facts(image_size=32))
    if kind == "autoencoder":
        autoencoder = build_autoencoder(component.Config(**AUTOENCODER.get(name, {})), 16)
        return autoencoder_part(autoencoder, Facts(image_size=16))
    if kind == "rdm":
        return model_part("rdm", build(component.Config(**NETWORK), component, VECTORS, None), Facts())
    config = component.Config(**GENERATOR.get(name, {}))
    data = TOKENS if config.process.discrete else PIXELS
    return model_part("generator", build(config, component, data, VECTORS), Facts(image_size=16))


def restore_part(part: Part) -> torch.nn.Module:
    """Rebuild the component of a part."""
    if part.kind == "encoder":
        return restore_encoder(part)
    if part.kind == "autoencoder":
        return restore_autoencoder(part)
    return restore(part, KINDS[part.kind])
