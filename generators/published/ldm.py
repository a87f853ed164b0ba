"""LDM checkpoints of RCG (`main_ldm.py`): an averaged U-Net, its live twin, the first stage and the frozen encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rcg.generators.published import _autoencoder, _encoder, _unet
from rcg.generators.published._files import LIVE, claim, first_stage, load_generator, save_generator
from rcg.generators.published._rcg import LABELS, average_name, schedule
from torch import Tensor

from rcg.core import checkpoint
from rcg.core import pretrained as weights
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import CONVERTERS, GENERATORS
from rcg.diffusion.model import build
from rcg.encoding.autoencoder import FOLDER

NETWORK, FIRST_STAGE = "model.diffusion_model.", "first_stage_model."
INNER = _unet.RESIDUAL | {
    "op": "stride",
    "conv": "conv",
    "norm": "norm",
    "proj_in": "input",
    "proj_out": "output",
    "transformer_blocks": "blocks",
}
TRANSFORMER = {
    "attn1.to_out.0.": "attn.proj.",
    "attn2.to_q.": "cross.q.",
    "attn2.to_out.0.": "cross.proj.",
    "ff.net.0.proj.": "mlp.fc1.",
    "ff.net.2.": "mlp.fc2.",
}
"""The original names of layers, in cells and in the blocks of a transformer, and ours."""
FUSED = {
    "attn.qkv.": ("attn1.to_q.", "attn1.to_k.", "attn1.to_v."),
    "cross.kv.": ("attn2.to_k.", "attn2.to_v."),
}
"""Ours, and the original layers whose rows it holds."""
SIDE = 32
"""Side of the latents of a file without its first stage, as published; the weights do not tell."""


@CONVERTERS.register
class LDM:
    """Reads and writes the training checkpoints of `main_ldm.py`."""

    @staticmethod
    def read(path: Path, run: Path) -> list[Path]:
        """Turn an original checkpoint into `run`/ldm (or ldm-class), `run`/encoder and `run`/autoencoder.

        Returns what was written.

        Raises:
            UserError: the file is not an LDM's, or its tensors do not fit the network.
        """
        tensors = weights.state_dict(weights.read(path))
        if f"{NETWORK}input_blocks.0.0.weight" not in tensors or "model_ema.num_updates" not in tensors:
            raise UserError(f"{path} is not an LDM checkpoint: it has no {NETWORK}input_blocks with its average")
        live = {key.removeprefix(NETWORK): value for key, value in tensors.items() if key.startswith(NETWORK)}
        average = {key: tensors[average_name(NETWORK + key)] for key in live}
        encoder = _encoder.read(tensors, path)
        tokenizer = _first_stage(tensors, path)
        channels = live["input_blocks.0.0.weight"].shape[1]
        autoencoder, data = first_stage(run, "vq", (channels, SIDE, SIDE), path)
        if tokenizer:
            autoencoder, data = tokenizer.config, tokenizer.space
        condition = "representation" if encoder else "class"
        cond = Space((), vocab=len(tensors[LABELS]), id="labels")
        if encoder:
            cond = _encoder.space(encoder, encoder.width, path)
        network = GENERATORS.get("ldm")
        config = network.Config(
            **_unet.shape_of(live, data.shape[1]),
            transformer_depth=depth_of(live),
            condition=condition,
            condition_dropout=0.0,
            sampler={"name": "ddim", "steps": 200, "eta": 1.0, "spacing": "rcg"},
            autoencoder=autoencoder,
        )
        claim(run / config.arm)
        model = build(config, network, data, cond)
        found = {f"network.{key}": value for key, value in ours(average).items()}
        if model.null is None:  # ours has one more row, the null label, which these models never saw
            found["network.cond.embed.embed.weight"] = torch.cat(
                [tensors[LABELS], torch.zeros_like(tensors[LABELS][:1])]
            )
        else:
            found["null"] = torch.zeros_like(model.null)
        outside = (NETWORK, "model_ema.diffusion_model", _encoder.PREFIX, *schedule())
        outside += (FIRST_STAGE,) if tokenizer else ()
        kept = {LIVE + key: value for key, value in live.items()}
        kept |= {key: value for key, value in tensors.items() if not key.startswith(outside)}
        written = save_generator(run, model, found, _autoencoder.SIDE, kept, path)
        written += [_encoder.save(encoder, run)] if encoder else []
        return written + (_autoencoder.save(tokenizer, run) if tokenizer else [])

    @staticmethod
    def write(run: Path, path: Path) -> None:
        """Turn `run`/ldm (or ldm-class), with `run`/encoder and `run`/autoencoder, into an original checkpoint.

        Without the live weights of a converted file the averaged ones stand in for them.
        """
        part, kept = load_generator(run, "ldm", {"context_tokens": 1, "self_condition": False, "groups": _unet.GROUPS})
        if part.config["condition"] == "none":
            raise UserError(f"{run}/ldm-none has no condition, which the original code cannot load")
        average = theirs(part.tensors)
        live = {key.removeprefix(LIVE): value for key, value in kept.items() if key.startswith(LIVE)} or average
        found = schedule() | _encoder.original(run)
        found |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(0, dtype=torch.int32)}
        for key, value in live.items():
            found[NETWORK + key] = value
            found[average_name(NETWORK + key)] = average[key]
        if part.config["condition"] == "class":
            found[LABELS] = part.tensors["network.cond.embed.embed.weight"][:-1]
        if (run / FOLDER / checkpoint.FILE).is_file():
            found |= {FIRST_STAGE + key: value for key, value in _autoencoder.original(run).items()}
        found |= {key: value for key, value in kept.items() if not key.startswith(LIVE)}
        with checkpoint.atomic(path) as temporary:
            torch.save({"model": found, "model_ema": None, "optimizer": None, "epoch": 0, "scaler": None}, temporary)


def _first_stage(tensors: Mapping[str, Tensor], path: Path) -> Any:
    """Rebuild the autoencoder that the checkpoint carries; None where it carries none."""
    found = {key.removeprefix(FIRST_STAGE): value for key, value in tensors.items() if key.startswith(FIRST_STAGE)}
    return _autoencoder.rebuild("vq", found, path) if found else None


def depth_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of blocks of an original spatial transformer."""
    return len({key.split(".")[3] for key in tensors if key.startswith("middle_block.1.transformer_blocks.")})


def ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return original tensors of the U-Net under our names, projections fused, 1 x 1 convolutions as matrices."""
    found = {}
    for key, value in tensors.items():
        fused = next(((mine, parts) for mine, parts in FUSED.items() if any(part in key for part in parts)), None)
        if fused:
            mine, parts = fused
            if parts[0] in key:
                rows = [tensors[key.replace(parts[0], part)] for part in parts]
                found[_unet.our_name(key.replace(parts[0], mine), INNER)] = torch.cat(rows)
            continue
        matrix = ".proj_in." in key or ".proj_out." in key
        found[_unet.our_name(_replace(key, TRANSFORMER), INNER)] = (
            value.flatten(1) if matrix and value.ndim == 4 else value
        )
    return found


def theirs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors of the U-Net, `network. ...`, under the original names."""
    found = {}
    for name, value in tensors.items():
        key = name.removeprefix("network.")
        if key == "null" or key.startswith("cond."):
            continue
        key = _unet.their_name(key, INNER)
        fused = next((mine for mine in FUSED if mine in key), None)
        if fused:
            for part, rows in zip(FUSED[fused], value.chunk(len(FUSED[fused])), strict=True):
                found[key.replace(fused, part)] = rows
            continue
        key = _replace(key, {mine: original for original, mine in TRANSFORMER.items()})
        matrix = (".proj_in." in key or ".proj_out." in key) and value.ndim == 2
        found[key] = value[..., None, None] if matrix else value
    return found


def _replace(key: str, names: Mapping[str, str]) -> str:
    """Exchange the one part of a key that `names` knows."""
    for before, after in names.items():
        if before in key:
            return key.replace(before, after)
    return key
