"""Names of the U-Net layers that ADM and LDM share, and what a U-Net's tensors say of its shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rcg.generators.published._files import inverse, swap
from torch import Tensor

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
"""The original names of layers, in the residual blocks and outside of all cells, and ours."""


def our_name(key: str, inner: Mapping[str, str]) -> str:
    """Return our name of an original tensor; `inner` names the layers of a cell."""
    if key.startswith("input_blocks.0."):
        return swap(key, OUTSIDE)
    if key.startswith("input_blocks."):
        _, cell, layer, rest = key.split(".", 3)
        return f"unet.down.{int(cell) - 1}.{layer}.{swap(rest, inner)}"
    if key.startswith("middle_block."):
        _, layer, rest = key.split(".", 2)
        return f"unet.bottleneck.{layer}.{swap(rest, inner)}"
    if key.startswith("output_blocks."):
        _, cell, layer, rest = key.split(".", 3)
        return f"unet.up.{cell}.{layer}.{swap(rest, inner)}"
    return swap(key, OUTSIDE)


def their_name(key: str, inner: Mapping[str, str]) -> str:
    """Return the original name of a tensor of ours."""
    if key.startswith("unet.down."):
        _, _, cell, layer, rest = key.split(".", 4)
        return f"input_blocks.{int(cell) + 1}.{layer}.{swap(rest, inverse(inner))}"
    if key.startswith("unet.bottleneck."):
        _, _, layer, rest = key.split(".", 3)
        return f"middle_block.{layer}.{swap(rest, inverse(inner))}"
    if key.startswith("unet.up."):
        _, _, cell, layer, rest = key.split(".", 4)
        return f"output_blocks.{cell}.{layer}.{swap(rest, inverse(inner))}"
    return swap(key, inverse(OUTSIDE))


def shape_of(tensors: Mapping[str, Tensor], side: int) -> dict[str, Any]:
    """Read the settings of a U-Net for data of `side` off its original tensors.

    The last cell of a level on the way up ends with a layer that doubles the side: there the number of blocks shows.
    """
    width = len(tensors["input_blocks.0.0.weight"])
    ups = {int(key.split(".")[1]): key for key in tensors if key.startswith("output_blocks.")}
    doubling = [int(key.split(".")[1]) for key in tensors if _doubles(key)]
    cells = min(doubling, default=len(ups) - 1) + 1  # of a level
    levels = range(len(ups) // cells)
    outs = [len(tensors[f"input_blocks.{1 + level * cells}.0.in_layers.2.weight"]) for level in levels]
    attends = [f"input_blocks.{1 + level * cells}.1.norm.weight" in tensors for level in levels]
    return {
        "width": width,
        "multipliers": [out // width for out in outs],
        "blocks": cells - 1,
        "groups": GROUPS,
        "attention": [side // 2**level for level in levels if attends[level]],
    }


def _doubles(key: str) -> bool:
    """Whether a tensor belongs to a layer that doubles the side: a second residual block, or a convolution."""
    parts = key.split(".")
    return parts[0] == "output_blocks" and parts[2] != "0" and parts[3] in ("in_layers", "conv")
