"""One self-describing safetensors file per part: weights, config and facts; loading needs this one path alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rcg.core.errors import UserError

FILE = "model.safetensors"
_HEADER = "rcg"


@dataclass(frozen=True)
class Part:
    """A trained component.

    Attributes:
        kind: `encoder`, `tokenizer`, `rdm` or `generator`.
        config: what a person chose, as the component's dumped config (its `name` finds the class).
        facts: what neighbors are (spaces, image size, class names) and how the part came about (step, seconds).
        tensors: the weights.
    """

    kind: str
    config: dict[str, Any]
    facts: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits that identify names, shapes, types and values of some tensors."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, part: Part) -> None:
    """Write a part atomically."""
    header = {"kind": part.kind, "config": part.config, "facts": part.facts}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in part.tensors.items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={_HEADER: json.dumps(header), "format": "pt"})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write named tensors with some facts, atomically."""
    save(path, Part("tensors", {}, dict(facts), dict(tensors)))


def is_part(path: Path) -> bool:
    """Whether a file is a safetensors file that describes itself, as ours do."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return _HEADER in (file.metadata() or {})
    except SafetensorError:
        return False


def load(path: Path | str, device: str = "cpu", weights: bool = True) -> Part:
    """Read a part, with or without its weights.

    Raises:
        UserError: the file is missing, truncated, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            names = file.keys() if weights else ()
            return Part(**header, tensors={name: file.get_tensor(name) for name in names})
    except KeyError:
        raise UserError(f"{path} holds weights but was not written by rcg: it has no description of them") from None
    except (SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error})") from None
