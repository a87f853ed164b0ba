"""Frozen encoders: building, opening and restoring them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from rcg.config import EncoderConfig, identity, parse_saved_config
from rcg.core import checkpoint
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Encoder
from rcg.core.registry import ENCODERS
from rcg.core.rng import fold_seed


def build_encoder(config: EncoderConfig, image_size: int, load: bool = True) -> Encoder:
    """Build the encoder that `config` names for images of `image_size` pixels."""
    encoder: Encoder = ENCODERS.get(config.name)(config, image_size, load)
    return encoder


def open_encoder(config: EncoderConfig, image_size: int, seed: int = 0) -> Encoder:
    """Build an encoder whose section names its weights; `none` means the random ones of a seed."""
    with torch.random.fork_rng(devices=[]):  # all that use the same random weights must agree on them
        torch.default_generator.manual_seed(fold_seed(seed, "weights", "encoder"))
        return build_encoder(config, image_size)


def encoder_part(encoder: Encoder, facts: Facts) -> Part:
    """Describe an encoder so that `restore_encoder` builds it again from one file."""
    return Part("encoder", encoder.config.model_dump(mode="json"), facts, encoder.state_dict())


def restore_encoder(part: Part) -> Encoder:
    """Rebuild the encoder of a part; raises `UserError` if its config and its tensors do not belong together."""

    def build() -> Encoder:
        return build_encoder(parse_saved_config(ENCODERS, part.kind, part.config), part.facts.image_size, load=False)

    return checkpoint.rebuild(part, build)


def load_encoder(path: Path) -> Encoder:
    """Rebuild the encoder of a checkpoint."""
    return restore_encoder(checkpoint.load(path, "encoder"))


def encoder_name(encoder: Encoder, digest: str) -> str:
    """Return the name `name:digest` of an encoder, with which the names of its spaces begin; see `encoder_id`."""
    return f"{encoder.config.name}:{digest}"


def encoder_id(encoder: Encoder) -> str:
    """Return 16 hex digits of everything that decides an encoder's output: its weights, and its identity."""
    tensors = checkpoint.digest(encoder.state_dict())
    settings = json.dumps(identity(encoder.config))
    return hashlib.sha256(f"{tensors}{settings}".encode()).hexdigest()[:16]
