"""Published files that are listed by the names and shapes of their tensors, and their conversion by the tool."""

import torch

from tests.parity import DATA
from tests.toy import tool


def listed_tensors(name, device="meta", folder=DATA / "keys"):
    """Return the tensors of a full-size file: without memory, or on the CPU with one value that all elements share."""
    tensors = {}
    for line in (folder / f"{name}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        key, shape, dtype = line.split("\t")
        sizes = [int(n) for n in shape.strip("()").split(",") if n.strip()]
        dtype = getattr(torch, dtype)
        if device == "meta":
            tensors[key] = torch.empty(sizes, dtype=dtype, device="meta")
        else:
            tensors[key] = torch.tensor(0.5).to(dtype).expand(sizes)
    return tensors


def convert(*arguments):
    """Run tools/convert.py, which must not fail."""
    done = tool("convert", *arguments)
    assert done.returncode == 0, done.stderr
    return done


def shapes(tensors):
    return {key: tuple(value.shape) for key, value in tensors.items()}
