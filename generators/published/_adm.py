"""Names of the layers of ADM's U-Net, which diffusion autoencoders share, and the order of its attention heads."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rcg.generators.published import _unet
from rcg.generators.published._files import Tensors
from rcg.generators.published._rcg import with_null_row

INNER = _unet.RESIDUAL | {
    "cond_emb_layers.1": "style",
    "norm": "norm",
    "qkv": "attention.qkv",
    "proj_out": "attention.proj",
}
COND = {"representation": "rep_proj", "class": "label_emb"}


class Layout(NamedTuple):
    """What the weights of a network do not tell."""

    side: int
    schedule: str = "linear"
    head_width: int = 64
    heads: int | None = None
    """Heads everywhere, whatever their width; null: as many as `head_width` gives."""
    by_kind: bool = False
    """Rows of a projection: queries of all heads, keys, values (the new attention order), or head after head."""

    def count(self, channels: int) -> int:
        """Return the number of heads that share `channels`."""
        return self.heads or max(1, channels // self.head_width)


def to_ours(tensors: Tensors, layout: Layout) -> dict[str, Tensor]:
    """Return original tensors under our names; a table of classes gets a null row."""
    renamed = {}
    for key, value in tensors.items():
        if key.startswith(tuple(COND.values())):
            _, name = key.split(".")
            renamed[f"cond.embed.{name}"] = with_null_row(value) if key == "label_emb.weight" else value
            continue
        if value.ndim == 3:  # a kernel of length 1
            value = value.flatten(1)
        if ".qkv." in key and not layout.by_kind:
            value = _regroup(value, layout.count(len(value) // 3), 3)
        renamed[_unet.our_name(key, INNER)] = value
    return renamed


def to_original(tensors: Tensors, condition: str, layout: Layout) -> dict[str, Tensor]:
    """Return our tensors, `network. ...`, under the original names."""
    renamed = {}
    for name, value in tensors.items():
        key = name.removeprefix("network.")
        if key == "null":
            continue
        if key.startswith("cond.embed."):
            renamed[key.replace("cond.embed", COND[condition])] = value[:-1] if condition == "class" else value
            continue
        if ".attention.qkv." in key and not layout.by_kind:
            value = _regroup(value, 3, layout.count(len(value) // 3))
        is_matrix = ".attention." in key and key.endswith("weight")
        renamed[_unet.original_name(key, INNER)] = value[..., None] if is_matrix else value
    return renamed


def _regroup(value: Tensor, outer: int, inner: int) -> Tensor:
    """Reorder rows from (outer, inner) to (inner, outer): heads, and the 3 of query, key and value."""
    return value.reshape(outer, inner, -1, *value.shape[1:]).transpose(0, 1).flatten(0, 2)
