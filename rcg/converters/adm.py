"""ADM checkpoints: of RCG (`main_adm.py`), and of guided-diffusion (Dhariwal and Nichol)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcg.contracts import Space
from rcg.converters import _unet
from rcg.converters._files import (
    LIVE,
    claim,
    cond_space,
    load_generator,
    read_original,
    save_generator,
    write_original,
)
from rcg.errors import UserError
from rcg.model import build
from rcg.registry import CONVERTERS, GENERATORS

INNER = _unet.RESIDUAL | {"norm": "norm", "qkv": "attention.qkv", "proj_out": "attention.proj"}
COND = {"representation": "rep_proj", "class": "label_emb"}
SIDES = {(1, 1, 2, 2, 4, 4): 256, (1, 2, 3, 4): 64}
"""The side of the published networks by their multipliers; the weights do not tell."""


@CONVERTERS.register
class ADM:
    """Reads and writes training checkpoints of RCG and plain state dicts of guided-diffusion."""

    @staticmethod
    def read(path: Path, run: Path) -> list[Path]:
        """Turn an original checkpoint into `run`/adm (adm-class, adm-none), and return what was written.

        A representation is taken to be that of `run`/rdm. What the weights do not tell (side, width of a head) comes
        from the arguments in the checkpoint, or is as published.

        Raises:
            UserError: the file is not an ADM's, or its tensors do not fit the network.
        """
        original = read_original(path)
        tensors = original.average
        if (
            "input_blocks.1.0.in_layers.0.weight" not in tensors
            or "input_blocks.1.0.emb_layers.1.weight" not in tensors
        ):
            raise UserError(f"{path} is not an ADM checkpoint: it has no input_blocks.1.0.in_layers.0.weight")
        channels = tensors["input_blocks.0.0.weight"].shape[1]
        side = image_size(tensors, original.args, path)
        condition = condition_of(tensors)
        cond = None
        if condition == "representation":
            cond = cond_space(run, tensors["rep_proj.weight"].shape[1], path)
        elif condition == "class":
            cond = Space((), vocab=len(tensors["label_emb.weight"]), id="labels")
        learned = len(tensors["out.2.weight"]) == 2 * channels
        network = GENERATORS.get("adm")
        config = network.Config(
            **_unet.shape_of(tensors, side),
            head_width=getattr(original.args, "num_head_channels", 64),
            condition=condition,
            condition_dropout=0.0,
            process={
                "name": "gaussian",
                "schedule": getattr(original.args, "noise_schedule", "cosine" if side == 64 else "linear"),
                "variance": "learned_range" if learned else "fixed_large",
            },
            sampler={"name": "ddpm", "steps": 250, "spacing": "linspace", "clip": True},
        )
        claim(run / config.arm)
        model = build(config, network, Space((channels, side, side), id="pixels"), cond)
        found = {f"network.{key}": value for key, value in ours(tensors, config.head_width).items()}
        if model.null is not None:
            found["null"] = torch.zeros_like(model.null)
        return save_generator(
            run, model, found, side, {LIVE + key: value for key, value in original.live.items()}, path
        )

    @staticmethod
    def write(run: Path, path: Path) -> None:
        """Turn `run`/adm (adm-class, adm-none) into an original checkpoint.

        Without the live weights of a converted file the averaged ones stand in for them.
        """
        part, live = load_generator(run, "adm", {"condition_path": "time", "self_condition": False})
        average = theirs(part.tensors, part.config["condition"], part.config["head_width"])
        live = {key.removeprefix(LIVE): value for key, value in live.items()}
        if part.config["condition"] == "representation":
            live = live or average
        write_original(path, average, live)


def condition_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the condition of an original network."""
    return next((kind for kind, name in COND.items() if f"{name}.weight" in tensors), "none")


def image_size(tensors: Mapping[str, Tensor], args: Any, path: Path) -> int:
    """Return the side of the images of an original network.

    Raises:
        UserError: neither the arguments nor the shape tell.
    """
    side = getattr(args, "image_size", None) or SIDES.get(tuple(_unet.shape_of(tensors, 1)["multipliers"]))
    if side is None:
        raise UserError(
            f"{path} does not say how it was trained, and has not the shape of the networks published for "
            f"{' and '.join(str(side) for side in SIDES.values())} px: those alone can be converted"
        )
    return int(side)


def ours(tensors: Mapping[str, Tensor], head_width: int) -> dict[str, Tensor]:
    """Return original tensors under our names; a table of classes gets a null row, which these models never saw."""
    found = {}
    for key, value in tensors.items():
        if ".qkv." in key:
            found[_unet.our_name(key, INNER)] = _by_kind(value, head_width)
        elif ".proj_out." in key:
            found[_unet.our_name(key, INNER)] = value.flatten(1) if value.ndim == 3 else value
        elif key == "label_emb.weight":
            found["cond.embed.weight"] = torch.cat([value, torch.zeros_like(value[:1])])
        elif key.startswith("rep_proj."):
            found[key.replace("rep_proj", "cond.embed")] = value
        else:
            found[_unet.our_name(key, INNER)] = value
    return found


def theirs(tensors: Mapping[str, Tensor], condition: str, head_width: int) -> dict[str, Tensor]:
    """Return our tensors, `network. ...`, under the original names."""
    found = {}
    for name, value in tensors.items():
        key = name.removeprefix("network.")
        if key == "null":
            continue
        if key.startswith("cond.embed."):
            found[key.replace("cond.embed", COND[condition])] = value[:-1] if condition == "class" else value
            continue
        if ".attention.qkv." in key:
            value = _by_head(value, head_width)
        attends = ".attention." in key and key.endswith("weight")
        found[_unet.their_name(key, INNER)] = value[..., None] if attends else value
    return found


def _by_kind(value: Tensor, head_width: int) -> Tensor:
    """Reorder rows from (head, query-key-value) to (query-key-value, head), and drop the length of a kernel."""
    heads = max(1, len(value) // 3 // head_width)
    return value.reshape(heads, 3, -1, *value.shape[1:2]).transpose(0, 1).flatten(0, 2)


def _by_head(value: Tensor, head_width: int) -> Tensor:
    """Undo `_by_kind`, apart from the kernel."""
    heads = max(1, len(value) // 3 // head_width)
    return value.reshape(3, heads, -1, *value.shape[1:]).transpose(0, 1).flatten(0, 2)
