"""Names of the U-Net layers that ADM and LDM share, and the shape of a U-Net read off its tensors."""

from __future__ import annotations

import re
from typing import Any

from rcg.generators.published._files import Names, Tensors, inverse, swap

RESIDUAL = {
    "in_layers.0": "norm_in",
    "in_layers.2": "conv_in",
    "emb_layers.1": "time",
    "out_layers.0": "norm_out",
    "out_layers.3": "conv_out",
    "skip_connection": "skip",
}
GROUPS = 32
"""Groups of channels that published U-Nets normalize, whatever their width."""
OUTSIDE = {"time_embed": "time", "input_blocks.0.0": "unet.input", "out.0": "unet.norm", "out.2": "unet.output"}
CELLS = {"input_blocks": "unet.down", "middle_block": "unet.bottleneck", "output_blocks": "unet.up"}
"""The original names of layers, in the residual blocks and outside of all cells, and of the cells, and ours."""


def our_name(key: str, inner: Names) -> str:
    """Return our name of an original tensor; `inner` names the layers of a cell."""
    return _rename(key, OUTSIDE, CELLS, inner, -1)


def original_name(key: str, inner: Names) -> str:
    """Return the original name of a tensor of ours."""
    return _rename(key, inverse(OUTSIDE), inverse(CELLS), inverse(inner), 1)


def _rename(key: str, outside: Names, cells: Names, inner: Names, shift: int) -> str:
    """Exchange names of layers by three tables; `shift` is added to the numbers of cells on the way down."""
    match = re.fullmatch(r"(\D+)\.(\d+)((?:\.\d+)?)\.(.+)", key)
    if match is None or match[1] not in cells or key.startswith("input_blocks.0."):
        return swap(key, outside)
    cell = int(match[2])
    if match[1] in ("input_blocks", "unet.down"):  # originally the first cell is the input convolution
        cell += shift
    return f"{cells[match[1]]}.{cell}{match[3]}.{swap(match[4], inner)}"


def shape_of(tensors: Tensors, side: int) -> dict[str, Any]:
    """Read the settings of a U-Net for data of `side` off its original tensors.

    The last cell of a level on the way up ends with a layer that doubles the side: it gives the number of blocks.
    """
    ups = {int(key.split(".")[1]) for key in tensors if key.startswith("output_blocks.")}
    doubling = [int(key.split(".")[1]) for key in tensors if _doubles(key)]
    return half_of(tensors, side, blocks=min(doubling, default=len(ups) - 1))


def half_of(tensors: Tensors, side: int, blocks: int) -> dict[str, Any]:
    """Read the settings of the way down of a U-Net for data of `side` with so many `blocks` a level off its tensors."""
    width = len(tensors["input_blocks.0.0.weight"])
    downs = {int(key.split(".")[1]) for key in tensors if key.startswith("input_blocks.")}
    levels = range(len(downs) // (blocks + 1))
    first = [f"input_blocks.{1 + level * (blocks + 1)}" for level in levels]
    return {
        "width": width,
        "multipliers": [len(tensors[f"{cell}.0.in_layers.2.weight"]) // width for cell in first],
        "blocks": blocks,
        "groups": GROUPS,
        "attention": [side // 2**level for level in levels if f"{first[level]}.1.norm.weight" in tensors],
    }


def _doubles(key: str) -> bool:
    """Whether a tensor belongs to a layer that doubles the side: a second residual block, or a convolution."""
    parts = key.split(".")
    return parts[0] == "output_blocks" and parts[2] != "0" and parts[3] in ("in_layers", "conv")
