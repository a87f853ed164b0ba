"""Vectors in files: generated representations, and precomputed conditions such as text embeddings and attributes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rcg.core import checkpoint
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Space
from rcg.core.errors import UserError

VECTORS, Z = "vectors", "z"


def read_vectors(path: Path) -> Tensor:
    """Return the precomputed vectors of a safetensors file, its tensor `vectors` `(N, D)`, as float32.

    Raises:
        UserError: the file is missing or broken, or holds no such tensor, or one that is not finite.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error})") from None
    return _rows(path, tensors, VECTORS)


def save_representations(path: Path, z: Tensor, space: Space, seed: int, condition: Mapping[str, Tensor]) -> None:
    """Write z `(N, D)` of a space, with what it was conditioned on, for `read_representations`."""
    facts = Facts(data=space, details={"seed": seed})
    checkpoint.save(path, Part("representations", {}, facts, {Z: z, **condition}))


def read_representations(path: Path, cond: Space | None, count: int) -> Tensor:
    """Return the z `(N, D)` of a file of tools/sample_rdm.py, at least `count`, that belong to a generator's `cond`.

    Raises:
        UserError: they are fewer, or of another space, or not finite, or the generator is not conditioned on any.
    """
    part = checkpoint.load(path, "representations", finite=False)  # the complaint below names the rows
    if cond is None or part.facts.data != cond:
        wanted = "nothing" if cond is None else str(cond)
        raise UserError(
            f"{path} holds representations of {part.facts.data and part.facts.data.id}, but the generator is "
            f"conditioned on {wanted}"
        )
    z = _rows(path, part.tensors, Z)
    if z.shape[1:] != cond.shape:
        raise UserError(f"{path} holds z of {z.shape[1]} numbers, but its header says {cond}: generate it again")
    if len(z) < count:
        raise UserError(f"{path} holds {len(z)} representations: --num {count} is more than that")
    return z


def _rows(path: Path, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the tensor `name` `(N, D)` of a file as float32; raises `UserError` if it is no matrix of such numbers."""
    rows = tensors.get(name)
    if rows is None or rows.ndim != 2 or not rows.is_floating_point():
        content = ", ".join(f"{key} {tuple(tensor.shape)} of {tensor.dtype}" for key, tensor in tensors.items())
        raise UserError(f"{path} must hold a floating-point tensor {name!r} of shape (N, D); it holds {content}")
    rows = rows.float()
    broken = (~rows.isfinite().all(1)).nonzero().flatten()
    if len(broken):
        raise UserError(
            f"{path}: {name} is not finite in {len(broken)} of {len(rows)} rows, row {int(broken[0])} first"
        )
    return rows
