"""DiT checkpoints: of RCG (`main_dit.py`), and of the original DiT (Peebles and Xie)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from rcg.generators.published._files import (
    LIVE,
    claim,
    cond_space,
    first_stage,
    inverse,
    load_generator,
    read_original,
    save_generator,
    swap,
    write_original,
)
from torch import Tensor

from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import CONVERTERS, GENERATORS
from rcg.diffusion.model import build
from rcg.nn import sincos_positions

OUTSIDE = {
    "x_embedder.proj": "patches",
    "t_embedder.mlp": "time",
    "final_layer.linear": "output",
    "final_layer.adaLN_modulation": "modulation",
}
BLOCK = {"attn": "attn", "mlp": "mlp", "adaLN_modulation": "modulation"}
"""The original names of layers, outside of the blocks and in them, and ours."""
COND = {"representation": "rep_embedder", "class": "y_embedder.embedding_table"}
POSITIONS = "pos_embed"
NULL = "fake_latent"
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Attention heads of the published widths; the weights do not tell."""
FOREIGN = {
    "mlp": "gelu",
    "norm": "layer",
    "qk_norm": False,
    "rotary": False,
    "context_tokens": 0,
    "self_condition": False,
}
"""Settings that the original code does not have, and where they change nothing."""


@CONVERTERS.register
class DiT:
    """Reads and writes training checkpoints of RCG and plain state dicts of the original DiT."""

    @staticmethod
    def read(path: Path, run: Path) -> list[Path]:
        """Turn an original checkpoint into `run`/dit (or dit-class), and return what was written.

        A representation is taken to be that of `run`/rdm, and latents those of `run`/autoencoder. The last row of a table
        of classes is its null.

        Raises:
            UserError: the file is not a DiT's, or its tensors do not fit the network.
        """
        original = read_original(path)
        tensors = original.average
        if "x_embedder.proj.weight" not in tensors or POSITIONS not in tensors:
            raise UserError(f"{path} is not a DiT checkpoint: it has no x_embedder.proj.weight with {POSITIONS}")
        condition = condition_of(tensors)
        width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
        side = patch * math.isqrt(tensors[POSITIONS].shape[1])
        cond = Space((), vocab=len(tensors[f"{COND['class']}.weight"]) - 1, id="labels")
        if condition == "representation":
            cond = cond_space(run, tensors["rep_embedder.weight"].shape[1], path)
        autoencoder, data = first_stage(run, "kl", (channels, side, side), path)
        learned = len(tensors["final_layer.linear.weight"]) == 2 * channels * patch**2
        network = GENERATORS.get("dit")
        config = network.Config(
            width=width,
            depth=len({key.split(".")[1] for key in tensors if key.startswith("blocks.")}),
            heads=HEADS.get(width, max(1, width // 64)),
            patch=patch,
            gelu="exact" if "rep_embedder.weight" in tensors else "tanh",
            condition=condition,
            condition_dropout=0.1 if condition == "class" or NULL in tensors else 0.0,
            process={"name": "gaussian", "variance": "learned_range" if learned else "fixed_large"},
            sampler={"name": "ddpm", "steps": 250, "spacing": "linspace"},
            guidance={"channels": 3},
            autoencoder=autoencoder,
        )
        claim(run / config.arm)
        model = build(config, network, data, cond)
        found = ours(tensors, condition)
        if model.null is not None:
            found.setdefault("null", torch.zeros_like(model.null))
        kept = {key: value for key, value in tensors.items() if our_name(key, condition) is None and key != POSITIONS}
        kept |= {LIVE + key: value for key, value in original.live.items()}
        return save_generator(run, model, found, 8 * side, kept, path)

    @staticmethod
    def write(run: Path, path: Path) -> None:
        """Turn `run`/dit (or dit-class) into an original checkpoint: RCG's where the condition is a representation.

        Without the live weights of a converted file the averaged ones stand in for them.
        """
        part, kept = load_generator(run, "dit", FOREIGN)
        if part.config["condition"] == "none":
            raise UserError(f"{run}/dit-none has no condition, which the original code cannot load")
        average = theirs(part.tensors, part.config["condition"], part.config["patch"], part.facts["data"]["shape"])
        if part.config["condition_dropout"] == 0:
            average.pop(NULL, None)
        average |= {key: value for key, value in kept.items() if not key.startswith(LIVE)}
        live = {key.removeprefix(LIVE): value for key, value in kept.items() if key.startswith(LIVE)}
        if part.config["condition"] == "representation":
            average.setdefault(f"{COND['class']}.weight", torch.zeros(1, part.config["width"]))
            live = live or average
        write_original(path, average, live)


def condition_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the condition of an original network: RCG's have both embeddings, and a table of one class unused."""
    table = tensors.get(f"{COND['class']}.weight")
    return "class" if table is not None and len(table) > 1 else "representation"


def ours(tensors: Mapping[str, Tensor], condition: str) -> dict[str, Tensor]:
    """Return original tensors under our names."""
    found = {}
    for key, value in tensors.items():
        name = our_name(key, condition)
        if name is not None:
            found[name] = value.flatten(1) if key == "x_embedder.proj.weight" else value
    return found


def theirs(tensors: Mapping[str, Tensor], condition: str, patch: int, shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """Return our tensors, of a model with data of `shape` `(C, h, w)`, under the original names."""
    channels, side, _ = shape
    found = {}
    for key, value in tensors.items():
        patches = key == "network.patches.weight"
        found[their_name(key, condition)] = value.unflatten(1, (channels, patch, patch)) if patches else value
    found[POSITIONS] = sincos_positions(side // patch, found["t_embedder.mlp.2.bias"].shape[0])[None]
    return found


def our_name(key: str, condition: str) -> str | None:
    """Return our name of an original tensor, None where it has no place: fixed positions, and what is not used."""
    if key == NULL:
        return "null" if condition == "representation" else None
    if key == POSITIONS or key.startswith(tuple(name for kind, name in COND.items() if kind != condition)):
        return None
    if key.startswith("blocks."):
        _, index, inner = key.split(".", 2)
        return f"network.blocks.{index}.{swap(inner, BLOCK)}"
    return f"network.{swap(key, OUTSIDE | {COND[condition]: 'cond.embed'})}"


def their_name(key: str, condition: str) -> str:
    """Return the original name of a tensor of ours."""
    if key == "null":
        return NULL
    name = key.removeprefix("network.")
    if name.startswith("blocks."):
        _, index, inner = name.split(".", 2)
        return f"blocks.{index}.{swap(inner, inverse(BLOCK))}"
    return swap(name, inverse(OUTSIDE | {COND[condition]: "cond.embed"}))
