"""Weight files of other programs: read without executing pickled code, checked against a module, loaded into it."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rcg.core.errors import UserError, nearest_file

ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".tar", ".bin")
"""How the names of weight files end."""
_LISTED = 3
"""Most tensor names that a complaint lists."""


def read(path: Path | str) -> dict[str, Any]:
    """Read a `.safetensors` file, or a PyTorch file of tensors, containers and `argparse.Namespace` only.

    Raises:
        UserError: the file is missing, truncated, or holds pickled code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"there is no weight file {path}; {nearest_file(path, *ENDINGS)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} holds more than tensors, and pickled code is never loaded ({reason})") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} is truncated or not a weight file ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a dictionary of tensors, not {type(content).__name__}")
    return content


def state_dict(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Unwrap the tensors of a training script's file: from `state_dict` or `model`, without the prefix `module.`."""
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    return {key.removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}


def fit(module: nn.Module, tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Load `tensors`, which come from `path`, into `module`: all of them and nothing else.

    Raises:
        UserError: names are missing or unexpected, or shapes differ; the message lists them.
    """
    expected = module.state_dict()
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = [key for key in expected if key not in tensors and key not in counters]
    unexpected = [key for key in tensors if key not in expected]
    shapes = [
        f"{key} is {tuple(tensors[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in tensors and tensors[key].shape != expected[key].shape
    ]
    groups = {"lacks": missing, "has also": unexpected, "differs:": shapes}
    complaints = [f"it {verb} {_first(names)}" for verb, names in groups.items() if names]
    if complaints:
        architecture = guess_architecture(tensors)
        if architecture:
            complaints.append(f"it looks like {architecture}")
        raise UserError(f"{path} does not fit {type(module).__name__}: {'; '.join(complaints)}")
    module.load_state_dict({**{key: expected[key] for key in counters}, **tensors})


def guess_architecture(tensors: Mapping[str, Tensor]) -> str:
    """Name the architecture that a state dict looks like: a ViT, a BEiT or a ResNet; empty if it is none of these."""
    patches = _find(tensors, r"patch_embed\.proj\.weight$")
    if patches is not None and patches.ndim == 4:
        blocks = _numbers(tensors, r"(?:^|\.)blocks\.(\d+)\.")
        width, _, _, patch = patches.shape
        kind = "a BEiT" if _find(tensors, r"relative_position_bias_table$") is not None else "a ViT"
        return f"{kind} of width {width} with {len(blocks)} blocks and patches of {patch} px"

    stem = _find(tensors, r"(?:^|\.)conv1\.weight$")
    counts = tuple(len(_numbers(tensors, rf"(?:^|\.)layer{stage}\.(\d+)\.")) for stage in range(1, 5))
    if stem is not None and all(counts):
        bottleneck = _find(tensors, r"layer1\.0\.conv3\.weight$") is not None
        depths = {(3, 4, 6, 3): "50" if bottleneck else "34", (2, 2, 2, 2): "18", (3, 4, 23, 3): "101"}
        name = f"a ResNet-{depths[counts]}" if counts in depths else f"a ResNet of {counts} blocks"
        return f"{name} of width {stem.shape[0]}"
    return ""


def _first(names: Sequence[str]) -> str:
    """List the first few names, and count the rest."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _find(tensors: Mapping[str, Tensor], pattern: str) -> Tensor | None:
    """Return the first tensor whose name matches."""
    return next((value for key, value in tensors.items() if re.search(pattern, key)), None)


def _numbers(tensors: Mapping[str, Tensor], pattern: str) -> set[str]:
    """Return the numbers that the pattern's group matches in the names."""
    return {match[1] for key in tensors if (match := re.search(pattern, key))}
