"""Precomputed vectors that an RDM is conditioned on: text embeddings, attributes."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rcg.core.errors import UserError

VECTORS = "vectors"


def read_vectors(path: Path) -> Tensor:
    """Return the precomputed vectors of a safetensors file, its tensor `vectors` `(N, D)`, as float32.

    Raises:
        UserError: the file is missing or broken, or holds no such tensor.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error})") from None
    if VECTORS not in tensors or tensors[VECTORS].ndim != 2:
        content = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise UserError(f"{path} must hold a tensor {VECTORS!r} of shape (N, D); it holds {content}")
    return tensors[VECTORS].float()
