"""How converters read and write files: names, what is there already, and what only the original format needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rcg.core import checkpoint
from rcg.core import pretrained as weights
from rcg.core.contracts import Space
from rcg.core.errors import UserError, nearest
from rcg.diffusion.model import GenerativeModel
from rcg.encoding.autoencoder import FOLDER, restore_autoencoder

KEPT = "original.safetensors"
"""Beside a converted part: the live weights and unused tensors, which only the original format needs."""
LIVE = "live."


class Original(NamedTuple):
    """The tensors of an original training checkpoint of DiT or ADM, or of a file with one set of weights."""

    average: dict[str, Tensor]
    live: dict[str, Tensor]  # empty where the file has one set of weights
    args: Any  # what the training script was told, None where it is not said


def read_original(path: Path) -> Original:
    """Read `model` and `model_ema` (or `ema`) of a training checkpoint, or a plain state dict."""
    found = weights.read(path)
    average = found.get("model_ema", found.get("ema"))
    if isinstance(average, Mapping):
        return Original(weights.state_dict(average), weights.state_dict({"model": found["model"]}), found.get("args"))
    return Original(weights.state_dict(found), {}, found.get("args"))


def write_original(path: Path, average: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
    """Write a training checkpoint, or without live weights a plain state dict."""
    training = {"model": dict(live), "model_ema": dict(average), "optimizer": None, "epoch": 0, "scaler": None}
    with checkpoint.atomic(path) as temporary:
        torch.save(training if live else dict(average), temporary)


def swap(name: str, names: Mapping[str, str]) -> str:
    """Exchange the layer that `name` starts with.

    Raises:
        UserError: there is no such layer.
    """
    layer = next((layer for layer in names if name.startswith(f"{layer}.")), None)
    if layer is None:
        raise UserError(f"the checkpoint's tensor {name} has no place in our network; {nearest(name, names)}")
    return names[layer] + name.removeprefix(layer)


def inverse(names: Mapping[str, str]) -> dict[str, str]:
    """Turn a table of names around."""
    return {mine: theirs for theirs, mine in names.items()}


def claim(folder: Path) -> None:
    """Refuse a folder that is there already."""
    if folder.exists():
        raise UserError(f"{folder} is there already: choose another folder")


def cond_space(run: Path, dim: int, path: Path) -> Space:
    """Return the space of the representations that a generator was trained on: of the run's RDM, where there is one.

    The original files do not say which encoder made them.
    """
    rdm = run / "rdm" / checkpoint.FILE
    if rdm.is_file():
        space = Space.from_json(checkpoint.load(rdm).facts["data"])
        if space.shape == (dim,):
            return space
    return Space((dim,), id=f"of {path.name}")


def first_stage(run: Path, name: str, shape: tuple[int, ...], path: Path) -> tuple[Any, Space]:
    """Return the section and the space of the autoencoder in whose latents of `shape` a generator was trained.

    That is the one of the run, where there is one; the original files do not say which. Else it is called `name`.
    """
    tokenizer = run / FOLDER / checkpoint.FILE
    if tokenizer.is_file():
        part = checkpoint.load(tokenizer)
        found = restore_autoencoder(part, part.facts["image_size"])
        if found.space.shape == shape:
            return found.config, found.space
    return name, Space(shape, id=f"of {path.name}")


def save_generator(
    run: Path,
    model: GenerativeModel,
    tensors: Mapping[str, Tensor],
    image_size: int,
    kept: Mapping[str, Tensor],
    path: Path,
    **more: Any,
) -> list[Path]:
    """Write a generator with `tensors` from the file `path` into `run`, and what is `kept` for the way back.

    What is said in `more` joins its facts.

    Raises:
        UserError: the tensors do not fit the model, or the folder is there already.
    """
    config: Any = model.config
    folder = run / config.arm
    claim(folder)
    weights.fit(model, tensors, path)
    classes = range(model.cond.vocab) if model.cond is not None and model.cond.vocab else ()
    facts = {
        "data": model.data.to_json(),
        "cond": None if model.cond is None else model.cond.to_json(),
        "classes": [str(i) for i in classes],
        "fingerprint": "",
        "image_size": image_size,
        **more,
    }
    written = [folder / checkpoint.FILE]
    part = checkpoint.Part("generator", config.model_dump(mode="json"), facts, model.state_dict())
    checkpoint.save(written[0], part)
    if kept:
        written.append(folder / KEPT)
        checkpoint.save_tensors(written[1], kept, {})
    return written


def load_generator(run: Path, name: str, foreign: Mapping[str, Any]) -> tuple[checkpoint.Part, dict[str, Tensor]]:
    """Return the run's generator called `name` and what was kept beside it.

    Args:
        run: the folder of a run.
        name: which generator, under any condition.
        foreign: settings that the original code does not have, and the value at which they change nothing.

    Raises:
        UserError: there is none or more than one, or the original code could not load it.
    """
    arms = [run / arm for arm in (name, f"{name}-class", f"{name}-none") if (run / arm / checkpoint.FILE).is_file()]
    if len(arms) != 1:
        raise UserError(f"{run} must hold one {name} (with any condition) to convert, and holds {len(arms)}")
    part = checkpoint.load(arms[0] / checkpoint.FILE)
    for key, neutral in foreign.items():
        if part.config[key] != neutral:
            raise UserError(f"{arms[0]} has {key} {part.config[key]}, which the original code cannot load")
    kept = arms[0] / KEPT
    return part, checkpoint.load(kept).tensors if kept.is_file() else {}
