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
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rcg.core.contracts import Space
from rcg.core.errors import UserError

_HEADER = "rcg"


class Facts(BaseModel):
    """What a part says about its neighbors and its training; what a person chose is in its config."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data: Space | None = None
    """The space that a generative model works in."""
    cond: Space | None = None
    """The space of its condition."""
    image_size: int = 0
    """Side of the images in pixels; 0 where none were involved."""
    classes: tuple[str, ...] = ()
    """Names of the labels."""
    cluster_counts: tuple[int, ...] = ()
    """Number of views of training images in each cluster, for a model conditioned on clusters."""
    fingerprint: str = ""
    """Fingerprint of the training images."""
    step: int = 0
    """Training steps taken."""
    steps: int = 0
    """Training steps configured."""
    seconds: float = 0.0
    """Seconds that these took."""
    program: dict[str, str] = {}
    """What trained it: versions of rcg and torch, the commit of rcg where it is known, and the command."""
    details: dict[str, Any] = {}
    """What only people read, or a converter on the way back."""


@dataclass(frozen=True)
class Part:
    """A trained component.

    Attributes:
        kind: `encoder`, `autoencoder`, `rdm` or `generator`.
        config: what a person chose, as the component's dumped config (its `name` finds the class).
        facts: its neighbors and its training.
        tensors: the weights.
    """

    kind: str
    config: dict[str, Any]
    facts: Facts
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


def clear_temporaries(folder: Path) -> None:
    """Remove the temporary files of `atomic` that killed processes left in a folder; nobody may be writing there."""
    for path in folder.glob(".*"):
        name, _, process = path.name[1:].rpartition(".")
        if name and process.isdigit():
            path.unlink()


def save(path: Path, part: Part) -> None:
    """Write a part atomically."""
    _write(path, part.tensors, {"kind": part.kind, "config": part.config, "facts": part.facts.model_dump(mode="json")})


def load(path: Path | str, device: str = "cpu", weights: bool = True) -> Part:
    """Read a part, with or without its weights.

    Raises:
        UserError: the file is missing, truncated, or not a part.
    """
    header, tensors = _read(Path(path), device, weights)
    try:
        return Part(header["kind"], header["config"], Facts.model_validate(header["facts"]), tensors)
    except (KeyError, ValidationError):
        raise UserError(f"{path} is no trained part, or was written by another version of rcg") from None


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write named tensors, and JSON-serializable facts that say what they are, atomically."""
    _write(path, tensors, {"tensors_of": dict(facts)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: tensors and facts.

    Raises:
        UserError: the file is missing, truncated, or not one of these.
    """
    header, tensors = _read(path, "cpu", True)
    if "tensors_of" not in header:
        raise UserError(f"{path} is a trained part, or was written by another version of rcg")
    return tensors, header["tensors_of"]


def is_part(path: Path) -> bool:
    """Whether a file is a safetensors file that describes itself, as ours do."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return _HEADER in (file.metadata() or {})
    except SafetensorError:
        return False


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        save_file(contiguous, temporary, metadata={_HEADER: json.dumps(header), "format": "pt"})


def _read(path: Path, device: str, weights: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            names = file.keys() if weights else ()
            return header, {name: file.get_tensor(name) for name in names}
    except KeyError:
        raise UserError(f"{path} holds weights but was not written by rcg: it has no description of them") from None
    except (SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error})") from None
