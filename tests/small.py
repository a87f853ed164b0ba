"""The smallest settings of every component, and parts of it that are built from them."""

import torch

from rcg.config import load_experiment
from rcg.core import checkpoint
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Space
from rcg.core.registry import AUTOENCODERS, ENCODERS, GENERATORS, NETWORKS
from rcg.diffusion.model import build, model_part, restore
from rcg.encoding.autoencoder import autoencoder_part, build_autoencoder, restore_autoencoder
from rcg.encoding.encoder import build_encoder, encoder_part, open_encoder, restore_encoder
from rcg.encoding.representation import Representation
from rcg.encoding.run_folder import RunFolder
from rcg.encoding.transform import Transform
from tests.toy import write

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
SIZE = 16
"""Side of the images of `make_run`."""
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


def noisy(model):
    """Draw all weights: the output of a new network is zero."""
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


def make_run(folder, encoder=None, normalize="per_sample", projection=None, condition="representation", trained=True):
    """Write a run as trainings leave it, without training anything."""
    section = {"name": "moco_v3", **ENCODER["moco_v3"]} if encoder is None else encoder
    changes = {"encoder": {**section, "train": {}}, "normalize": normalize, "projection": projection}
    path = write(folder, **changes, generator__condition=condition, generator__depth=1)
    experiment, run = load_experiment(path), RunFolder(folder / "run")
    torch.manual_seed(0)
    network = open_encoder(experiment.encoder, SIZE, experiment.seed)
    if experiment.encoder.weights is None:
        checkpoint.save(run.encoder.checkpoint, encoder_part(network, Facts(image_size=SIZE)))
    transform = Transform(normalize, experiment.projection)
    if transform.needs_fit:
        facts = {"encoder": "x", "views": 1, **experiment.model_dump(mode="json", include={"projection", "normalize"})}
        for seed in (1, 0):  # one was fitted to other images
            transform.fit(torch.randn(200, network.width, generator=torch.Generator().manual_seed(seed)))
            name = run.fitted("transform", facts | {"images": seed})
            checkpoint.save_tensors(name, transform.state_dict(), facts | {"images": seed})
    space = Representation(network, transform).space
    rdm = build(experiment.rdm, NETWORKS.get("rep_mlp"), space, None)
    checkpoint.save(run.rdm.checkpoint, model_part("rdm", noisy(rdm), Facts(image_size=SIZE)))
    cond = space if condition == "representation" else None
    generator = build(experiment.generator, GENERATORS.get("dit"), Space((3, SIZE, SIZE), id="pixels"), cond)
    stage = run.stage_folder(experiment.generator.folder_name)
    checkpoint.save(stage.checkpoint, model_part("generator", noisy(generator), Facts(image_size=SIZE)))
    stage.config.write_text(experiment.to_yaml())
    return run
