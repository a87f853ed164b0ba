"""Reads published weight files without executing pickled code, and says how a file fails to fit."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rcg.core.errors import UserError, nearest


def read(path: Path | str) -> dict[str, Any]:
    """Read a `.safetensors` file, or a PyTorch file (tensors, containers and `argparse.Namespace` only).

    Raises:
        UserError: the file is missing, truncated, or holds pickled code.
    """
    path = Path(path)
    if not path.is_file():
        there = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"there is no weight file {path}; {nearest(str(path), there)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} holds more than tensors, and pickled code is never loaded ({reason})") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} is truncated or not a weight file ({str(error).splitlines()[0]})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a dictionary of tensors, not {type(found).__name__}")
    return found


def state_dict(found: Mapping[str, Any]) -> dict[str, Tensor]:
    """Unwrap what training scripts save: `state_dict` or `model` around the tensors, `module.` before their names."""
    for wrapper in ("state_dict", "model"):
        if isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    return {key.removeprefix("module."): value for key, value in found.items() if isinstance(value, Tensor)}


def fit(module: nn.Module, tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Load `tensors` into `module`, all of them and nothing else.

    Raises:
        UserError: names are missing or unexpected, or shapes differ; it says which.
    """
    expected = module.state_dict()
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    complaints = []
    missing = [key for key in expected if key not in tensors and key not in counters]
    unexpected = [key for key in tensors if key not in expected]
    shapes = [
        f"{key} is {tuple(tensors[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in tensors and tensors[key].shape != expected[key].shape
    ]
    for what, keys in (("lacks", missing), ("has also", unexpected), ("differs:", shapes)):
        if keys:
            complaints.append(f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}")
    if complaints:
        looks = describe(tensors)
        raise UserError(
            f"{path} does not fit {type(module).__name__}: it {'; it '.join(complaints)}"
            + (f"; it looks like {looks}" if looks else "")
        )
    module.load_state_dict({**{key: expected[key] for key in counters}, **tensors})


def describe(tensors: Mapping[str, Tensor]) -> str:
    """Name the architecture that a state dict looks like, empty when it is none of those known here."""
    patches = _one(tensors, r"patch_embed\.proj\.weight$")
    if patches is not None and patches.ndim == 4:
        blocks = {m[1] for key in tensors if (m := re.search(r"(?:^|\.)blocks\.(\d+)\.", key))}
        width, _, _, patch = patches.shape
        kind = "a BEiT" if _one(tensors, r"relative_position_bias_table$") is not None else "a ViT"
        return f"{kind} of width {width} with {len(blocks)} blocks and patches of {patch} px"
    stem = _one(tensors, r"(?:^|\.)conv1\.weight$")
    stages = [{m[1] for key in tensors if (m := re.search(rf"(?:^|\.)layer{n}\.(\d+)\.", key))} for n in range(1, 5)]
    if stem is not None and all(stages):
        counts = tuple(len(stage) for stage in stages)
        bottleneck = _one(tensors, r"layer1\.0\.conv3\.weight$") is not None
        known = {(3, 4, 6, 3): "50" if bottleneck else "34", (2, 2, 2, 2): "18", (3, 4, 23, 3): "101"}
        name = f"a ResNet-{known[counts]}" if counts in known else f"a ResNet of {counts} blocks"
        return f"{name} of width {stem.shape[0]}"
    return ""


def _one(tensors: Mapping[str, Tensor], pattern: str) -> Tensor | None:
    return next((value for key, value in tensors.items() if re.search(pattern, key)), None)
