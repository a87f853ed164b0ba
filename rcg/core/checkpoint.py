"""One self-describing safetensors file per part: weights, config and facts; loading needs this one path alone."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import psutil
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.pretrained import check_finite, misfits

Module = TypeVar("Module", bound=nn.Module)

_HEADER = "rcg"
_TEMPORARY = f".writing-{platform.node()}-"
MAX_HEADER = 2**26
"""Most characters of a header; JSON takes many times as much memory as its text."""
MAX_SIZE = 2**24
"""Largest number in a config, training apart."""
MAX_BUFFERS = 2**28
"""Most bytes of tables that a module computes instead of storing them (positions, noise levels)."""


class Facts(BaseModel):
    """What a part says about its neighbors and its training; what a person chose is in its config."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data: Space | None = None
    """The space that a generative model works in."""
    cond: Space | None = None
    """The space of its condition."""
    z: Space | None = None
    """The space of the representation that it generates together with the data."""
    image_size: NonNegativeInt = 0
    """Side of the images in pixels; 0 where none were involved."""
    classes: tuple[str, ...] = ()
    """Names of the labels."""
    cluster_counts: tuple[NonNegativeInt, ...] = ()
    """Number of views of training images in each cluster, for a model conditioned on clusters."""
    fingerprint: str = ""
    """Fingerprint of the training images."""
    perceptual: str = ""
    """The encoder that a generator learned to please by a perceptual loss, as `name:digest`; empty: none."""
    step: NonNegativeInt = 0
    """Training steps taken."""
    steps: NonNegativeInt = 0
    """Training steps configured."""
    seconds: float = 0.0
    """Seconds that these took."""
    program: dict[str, str] = {}
    """What trained it: versions of rcg and torch, the commit of rcg where it is known, and the command."""
    details: dict[str, Any] = {}
    """What only people read, or a converter on the way back."""

    @field_validator("data", "cond", "z")
    @classmethod
    def _refuse_impossible_spaces(cls, space: Space | None) -> Space | None:
        sizes = () if space is None else (*space.shape, 1 if space.vocab is None else space.vocab)
        if any(size < 1 for size in sizes):
            raise ValueError(f"a space has positive sizes, not {sizes}")
        if space is not None and len(set(space.shape[-2:])) > 1:
            raise ValueError(f"a space is square, and {space.shape} is not")
        return space


class _Header(BaseModel):
    """What the header of a part says."""

    kind: str
    config: dict[str, Any]
    facts: Facts


@dataclass(frozen=True)
class Part:
    """A trained component.

    Attributes:
        kind: `encoder`, `transform`, `autoencoder`, `rdm`, `generator`, `representations`, `direction` or `shift`.
        config: what a person chose, as the component's dumped config (its `name` finds the class).
        facts: its neighbors and its training.
        tensors: the weights.
        source: the file that it was read from; empty for a part that was made here.
    """

    kind: str
    config: dict[str, Any]
    facts: Facts
    tensors: dict[str, Tensor] = field(repr=False)
    source: str = field(default="", compare=False)


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
    """Yield a temporary path that becomes `path` when the block ends well, and vanishes when it does not.

    It is hidden and lies beside `path`; what killed processes left there vanishes as well.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_once(path.parent.resolve())
    # Its own ending keeps it out of what looks for all pictures in a folder.
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}.part")
    try:
        yield temporary
        with temporary.open("r+b") as written:  # some systems only flush what was opened for writing
            os.fsync(written.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        if error.filename is None:  # a full disk knows no file
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    except SafetensorError as error:
        raise OSError(errno.EIO, f"cannot be written: {error}", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def clear_temporaries(folder: Path) -> None:
    """Remove the temporary files of `atomic` that processes of this machine left in a folder which are no more."""
    for leftover in folder.iterdir() if folder.is_dir() else ():
        process = re.fullmatch(rf"{re.escape(_TEMPORARY)}(\d+)-.*", leftover.name)
        if process and not psutil.pid_exists(int(process[1])):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


_clear_once = cache(clear_temporaries)
"""Before the first file that is written to a folder: it may hold a million."""


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder last, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save(path: Path, part: Part) -> None:
    """Write a part atomically."""
    _write(path, part.tensors, {"kind": part.kind, "config": part.config, "facts": part.facts.model_dump(mode="json")})


def load(path: Path | str, kind: str | None = None, *, weights: bool = True, finite: bool = True) -> Part:
    """Read a part.

    Args:
        path: its file.
        kind: what it has to be; None: anything.
        weights: whether to read its tensors as well.
        finite: whether to refuse values that are not.

    Raises:
        UserError: the file is missing, truncated, not a part or one of another kind, or holds values that are not
            finite.
    """
    values, tensors = _read(Path(path), weights)
    try:
        header = _Header.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path} is no trained part, or was written by another version of rcg ({key} in its header: {first['msg']})"
        ) from None
    if kind not in (None, header.kind):
        raise UserError(f"{path} holds another part than expected: kind is {header.kind!r} instead of {kind!r}")
    if finite:
        check_finite(tensors, path)
    return Part(header.kind, header.config, header.facts, tensors, str(path))


def rebuild(part: Part, build: Callable[[], Module]) -> Module:
    """Build the module that a part describes, and load its weights.

    The module is built twice, at first without memory: a file whose header and tensors do not belong together is
    refused before anything large is allocated.

    Args:
        part: config, facts and tensors.
        build: builds the module of the part's config and facts on torch's default device.

    Raises:
        UserError: no such module can be built, or the tensors are not exactly its state.
    """
    owner = part.source or f"the {part.kind}"
    try:
        _check_sizes(part.config, "config")
        with torch.device("meta"), _limited(len(part.tensors)):
            outline = build()
        expected = outline.state_dict()
        computed = sum(buffer.nbytes for name, buffer in outline.named_buffers() if name not in expected)
        if computed > MAX_BUFFERS:
            raise UserError(f"its config and facts ask for {computed:.2g} bytes of tables")
    except UserError as error:
        raise UserError(f"{owner}: {error}") from None
    except Exception as error:  # an edited header may break a constructor in any way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{owner}: its config and facts describe no {part.kind} that can be built ({reason})") from None
    complaints = misfits(expected, part.tensors, exact=True)
    if complaints:
        raise UserError(f"{owner} holds other tensors than its config describes: {complaints}")
    module = build()
    module.load_state_dict(part.tensors)
    return module


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write named tensors, and JSON-serializable facts that say what they are, atomically."""
    _write(path, tensors, {"tensors_of": dict(facts)})


def load_tensors(path: Path, finite: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: tensors and facts.

    Args:
        path: its file.
        finite: whether to check that all values are; that reads all of a file whose rows are read only as they are
            used.

    Raises:
        UserError: the file is missing, truncated, or not one of these, or holds values that are not finite.
    """
    header, tensors = _read(path, True)
    if not isinstance(header.get("tensors_of"), dict):
        raise UserError(f"{path} is a trained part, or was written by another version of rcg")
    if finite:
        check_finite(tensors, path)
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
    # The library writes a file of its own choice beside the one that is asked for: both in a folder that is ours.
    prefix = f"{_TEMPORARY}{os.getpid()}-"
    with atomic(path) as temporary, TemporaryDirectory(prefix=prefix, dir=path.parent) as folder:
        written = Path(folder) / path.name
        save_file(contiguous, written, metadata={_HEADER: json.dumps(header), "format": "pt"})
        written.chmod(0o666 & ~_umask())  # it is written for its owner alone
        written.replace(temporary)


def _umask() -> int:
    """Return what new files do not allow; the system only tells by changing it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _check_sizes(values: Any, path: str) -> None:
    """Refuse numbers of layers, channels or pixels that no machine has room for."""
    if isinstance(values, int) and values > MAX_SIZE:
        raise UserError(f"{path} is {values}, and more than {MAX_SIZE} cannot be built")
    children: Any = values if isinstance(values, dict) else dict(enumerate(values if isinstance(values, list) else ()))
    for key, value in children.items():
        if key != "train":  # what it was trained with takes no room
            _check_sizes(value, f"{path}.{key}")


@contextmanager
def _limited(tensors: int) -> Iterator[None]:
    """Refuse to build a module of many more parameters than there are tensors for, before it takes time and memory."""
    most, made = 2 * tensors + 100, 0  # layers may be replaced while a module is built

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise UserError(f"its config describes a network of more than its {tensors} tensors")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _read(path: Path, weights: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER)
            tensors = {name: file.get_tensor(name) for name in (file.keys() if weights else ())}
    except (SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error})") from None
    if text is None:
        raise UserError(f"{path} holds weights but was not written by rcg: it has no description of them")
    if len(text) > MAX_HEADER:
        raise UserError(f"{path} has a description of {len(text)} characters: at most {MAX_HEADER} are read")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} has a description that is damaged ({error})") from None
    if not isinstance(header, dict):
        raise UserError(f"{path} has a description that is damaged (it is a {type(header).__name__})")
    return header, tensors
