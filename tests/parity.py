"""Reads the recorded inputs and outputs of the published models; their weights are regenerated from key and shape."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

DATA = Path(__file__).parent / "reference"


def recorded(name):
    """Return (description, tensors): inputs `in/...`, outputs `out/...`, random draws `aux/...`."""
    return json.loads((DATA / f"{name}.json").read_text()), load_file(DATA / f"{name}.safetensors")


def normal(key, shape):
    """Return the standard normal array that belongs to a key."""
    values = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(np.asarray(values))


def weight(key, shape, kind):
    """Return the weight that belongs to a key of a published state dict."""
    r = normal(key, shape)
    if kind == "embedding":
        return r
    if key.endswith("running_mean"):
        return 0.1 * r
    if key.endswith("running_var"):
        return 0.5 + r.abs()
    if len(shape) >= 2:
        return 0.5 * r if shape[0] == 1 else r / np.prod(shape[1:]) ** 0.5
    return 0.1 * r if key.endswith("bias") else 1 + 0.1 * r


def state(name):
    """Return the state dict of a recorded model, with its fixed tables."""
    about, tensors = recorded(name)
    weights = {}
    for key, entry in about["state"].items():
        fixed = tensors.get(f"state/{key}", tensors.get(key))
        weights[key] = fixed if fixed is not None else weight(key, entry["shape"], entry["kind"])
    return weights
