"""Vectors that were computed elsewhere and that an RDM is told: text embeddings, attributes."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rcg.core.errors import UserError

KEY = "vectors"


def read(path: Path) -> Tensor:
    """Return the tensor `vectors` `(N, D)` of a safetensors file as float32.

    Raises:
        UserError: the file is missing or broken, or holds no such tensor.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error})") from None
    if KEY not in tensors or tensors[KEY].ndim != 2:
        there = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise UserError(f"{path} must hold a tensor {KEY!r} of shape (N, D); it holds {there}")
    return tensors[KEY].float()
