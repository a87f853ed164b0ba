"""Reading and writing for converters: original files, names of layers, and parts of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rcg.config import parse_saved_config
from rcg.core import checkpoint, pretrained
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Space
from rcg.core.errors import UserError, nearest
from rcg.core.registry import GENERATORS, Registry
from rcg.diffusion.model import GenerativeModel, model_part
from rcg.encoding.autoencoder import restore_autoencoder
from rcg.encoding.run_folder import RunFolder, StageFolder

Tensors = Mapping[str, Tensor]
Names = Mapping[str, str]
DIFFUSION = {
    "process.name": "gaussian",
    "process.schedule": "linear",
    "process.predict": "eps",
    "process.steps": 1000,
    "process.zero_terminal_snr": False,
    "self_condition": False,
}
"""The diffusion of the original code, and what it does not know, for `check_settings`."""
LIVE = "live."
"""Prefix of the live weights among the tensors that only the original format needs."""


class Original(NamedTuple):
    """The tensors of an original training checkpoint of DiT or ADM, or of a file with one set of weights."""

    average: dict[str, Tensor]
    live: dict[str, Tensor]
    """Empty where the file has one set of weights."""
    args: dict[str, Any]
    """The arguments of the training script; empty where the file does not hold them."""


class Loaded(NamedTuple):
    """A converted generator."""

    part: Part
    live: dict[str, Tensor]
    """Live weights; empty where the original file had one set of weights."""
    extra: dict[str, Tensor]
    """Other tensors that only the original format needs."""


def read_original(path: Path) -> Original:
    """Read the average, and `model` where there is both, of a training checkpoint; or a plain state dict."""
    content = pretrained.read(path)
    args = arguments_of(content)
    average = next((content[key] for key in pretrained.AVERAGES if isinstance(content.get(key), Mapping)), None)
    if average is None:
        return Original(pretrained.state_dict(content, path), {}, args)
    model = content.get("model")
    live = pretrained.state_dict(model, path) if isinstance(model, Mapping) else {}
    return Original(pretrained.state_dict(average, path), live, args)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a PyTorch file atomically."""
    with checkpoint.atomic(path) as temporary:
        torch.save(content, temporary)


def write_training(path: Path, model: Tensors, average: Tensors | None = None) -> None:
    """Write a training checkpoint as the original scripts read it."""
    model_ema = None if average is None else dict(average)
    write(path, {"model": dict(model), "model_ema": model_ema, "optimizer": None, "epoch": 0, "scaler": None})


def write_original(path: Path, average: Tensors, live: Tensors) -> None:
    """Write a training checkpoint, or without live weights a plain state dict."""
    if live:
        write_training(path, live, average)
    else:
        write(path, dict(average))


def swap(name: str, names: Names) -> str:
    """Exchange the layer that `name` starts with; a `*` in the table `names` stands for a number.

    Raises:
        UserError: there is no such layer.
    """
    for before, after in names.items():
        pattern = re.escape(before).replace(r"\*", r"(\d+)")
        if match := re.match(rf"{pattern}(?=\.|$)", name):
            return match.expand(after.replace("*", r"\1")) + name[match.end() :]
    raise UserError(f"the checkpoint's tensor {name} has no place in our network; {nearest(name, names)}")


def inverse(names: Names) -> dict[str, str]:
    """Return a table of names in the other direction."""
    return {value: key for key, value in names.items()}


def select(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def count(tensors: Tensors, prefix: str) -> int:
    """Return the number of blocks of a list of them, whose name is `prefix`."""
    return len({key.split(".")[0] for key in select(tensors, f"{prefix}.")})


def arguments_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the training script that a checkpoint holds, those without a value left out."""
    args = content.get("args") or {}
    values = args if isinstance(args, Mapping) else getattr(args, "__dict__", {})
    return {key: value for key, value in values.items() if value is not None}


def number_of(args: Mapping[str, Any], key: str, default: float, path: Path) -> float:
    """Return a number among the arguments of a training script; raises `UserError` if it is none."""
    value = args.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{path}: its argument {key} is {value!r}, not a number")
    return value


def dropout_of(args: Mapping[str, Any], path: Path) -> float:
    """Return the share of representations that RCG replaced by the null in training; 0.1 as published if unknown.

    Raises:
        UserError: the argument is no share.
    """
    share = number_of(args, "rep_drop_prob", 0.1, path)
    if not 0 <= share <= 1:
        raise UserError(f"{path}: its argument rep_drop_prob is {share}, not a share from 0 to 1")
    return share


def cond_space(run: RunFolder, dim: int, path: Path) -> Space:
    """Return the space of the representations that a generator was trained on: that of the run's RDM, if it fits.

    The original files do not say which encoder made them.
    """
    if run.rdm.is_trained:
        space = run.rdm.part(weights=False).facts.data
        if space is not None and space.shape == (dim,):
            return space
    return Space((dim,), id=f"of {path.name}")


def find_autoencoder(run: RunFolder, name: str, shape: tuple[int, ...], path: Path) -> tuple[Any, Space]:
    """Return the section and the space of the autoencoder in whose latents of `shape` a generator was trained.

    The original files do not say which: it is that of the run, if it fits, else one called `name`.
    """
    if run.autoencoder.is_trained:
        autoencoder = restore_autoencoder(run.autoencoder.part())
        if autoencoder.space.shape == shape:
            return autoencoder.config, autoencoder.space
    return name, Space(shape, id=f"of {path.name}")


def check_settings(part: Part, registry: Registry, foreign: Mapping[str, Any]) -> None:
    """Refuse a part that the original code would load, and then use as something else.

    Args:
        part: the part that goes back.
        registry: of its network.
        foreign: by dotted key, the values of settings that the original code does not have, at which they change
            nothing, and of those that it has fixed; several of them in a tuple.

    Raises:
        UserError: a setting has another value; the sentence names it.
    """
    values: Any = parse_saved_config(registry, part.kind, part.config).model_dump(mode="json")
    for key, allowed in foreign.items():
        found = values
        for name in key.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if found not in (allowed if isinstance(allowed, tuple) else (allowed,)):
            raise UserError(
                f"{part.source} has {key} {found}, which the original code cannot load: it has {allowed} alone"
            )


def load_extra(stage: StageFolder) -> dict[str, Tensor]:
    """Return the tensors that only the original format needs; none where there are none."""
    return checkpoint.load_tensors(stage.original)[0] if stage.original.is_file() else {}


def save_model(
    stage: StageFolder, kind: str, model: GenerativeModel, weights: Tensors, extra: Tensors, path: Path, **facts: Any
) -> list[Path]:
    """Write a model into a run, and return the files that were written.

    Args:
        stage: the folder of the model.
        kind: `rdm` or `generator`.
        model: the model.
        weights: its weights, which were read from `path`; a null condition that they lack is zero.
        extra: tensors that only the original format needs.
        path: the original file.
        facts: facts beside those that the model gives.

    Raises:
        UserError: the tensors do not fit the model, or the folder is there already.
    """
    if stage.path.exists():
        raise UserError(f"{stage.path} is there already: choose another folder")
    if model.null is not None:
        weights = {"null": torch.zeros_like(model.null), **weights}
    pretrained.fit(model, weights, path)
    labels = range(model.cond.vocab or 0) if model.cond is not None else ()
    classes = tuple(str(label) for label in labels)
    checkpoint.save(stage.checkpoint, model_part(kind, model, Facts(classes=classes, **facts)))
    if not extra:
        return [stage.checkpoint]
    checkpoint.save_tensors(stage.original, extra, {})
    return [stage.checkpoint, stage.original]


def save_generator(
    run: RunFolder, model: GenerativeModel, weights: Tensors, extra: Tensors, path: Path, **facts: Any
) -> list[Path]:
    """Write a generator into the folder that its name and condition give; see `save_model`."""
    config: Any = model.config
    return save_model(run.stage_folder(config.folder_name), "generator", model, weights, extra, path, **facts)


def load_generator(run: RunFolder, name: str, foreign: Mapping[str, Any]) -> Loaded:
    """Return the run's generator called `name`, and the tensors that only the original format needs.

    Args:
        run: the folder of a run.
        name: which generator, conditioned on representations, classes or nothing.
        foreign: see `check_settings`.

    Raises:
        UserError: there is none or more than one, or the original code could not load it.
    """
    stages = [run.stage_folder(folder) for folder in (name, f"{name}-class", f"{name}-none")]
    trained = [stage for stage in stages if stage.is_trained]
    if len(trained) != 1:
        raise UserError(f"{run.path} must hold one {name} to convert, and holds {len(trained)}")
    (stage,) = trained
    part = stage.part()
    check_settings(part, GENERATORS, foreign)
    extra = load_extra(stage)
    return Loaded(part, select(extra, LIVE), {key: value for key, value in extra.items() if not key.startswith(LIVE)})
