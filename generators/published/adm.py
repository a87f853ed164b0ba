"""ADM checkpoints: of RCG (`main_adm.py`), and of guided-diffusion (Dhariwal and Nichol)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rcg.generators.published import _unet
from rcg.generators.published._files import (
    LIVE,
    claim,
    cond_space,
    load_generator,
    read_original,
    save_generator,
    write_original,
)
from torch import Tensor

from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import CONVERTERS, GENERATORS
from rcg.diffusion.model import build

INNER = _unet.RESIDUAL | {"norm": "norm", "qkv": "attention.qkv", "proj_out": "attention.proj"}
COND = {"representation": "rep_proj", "class": "label_emb"}


class Layout(NamedTuple):
    """What the weights of a network do not tell."""

    side: int
    schedule: str = "linear"
    head_width: int = 64
    heads: int | None = None
    """Heads everywhere, whatever their width; None: as many as `head_width` gives."""
    by_kind: bool = False
    """Rows of a projection: queries of all heads, keys, values (the new attention order), or head after head."""

    def count(self, channels: int) -> int:
        """Return the number of heads that share `channels`."""
        return self.heads or max(1, channels // self.head_width)


PUBLISHED = {
    (1, 2, 3, 4): Layout(64, schedule="cosine", by_kind=True),
    (1, 1, 2, 3, 4): Layout(128, heads=4),
    (1, 1, 2, 2, 4, 4): Layout(256),
    (1, 2, 2, 4, 4, 8, 8): Layout(512),
}
"""The networks of guided-diffusion's README by their multipliers, at 512 px of the first level's half width."""


@CONVERTERS.register
class ADM:
    """Reads and writes training checkpoints of RCG and plain state dicts of guided-diffusion."""

    @staticmethod
    def read(path: Path, run: Path) -> list[Path]:
        """Turn an original checkpoint into `run`/adm (adm-class, adm-none), and return what was written.

        A representation is taken to be that of `run`/rdm. What the weights do not tell (side, width of a head) comes
        from the arguments in the checkpoint, or is as published.

        Raises:
            UserError: the file is not an ADM's, or its tensors do not fit the network.
        """
        original = read_original(path)
        tensors = original.average
        if (
            "input_blocks.1.0.in_layers.0.weight" not in tensors
            or "input_blocks.1.0.emb_layers.1.weight" not in tensors
        ):
            raise UserError(f"{path} is not an ADM checkpoint: it has no input_blocks.1.0.in_layers.0.weight")
        channels = tensors["input_blocks.0.0.weight"].shape[1]
        layout = layout_of(tensors, original.args, path)
        side = layout.side
        condition = condition_of(tensors)
        cond = None
        if condition == "representation":
            cond = cond_space(run, tensors["rep_proj.weight"].shape[1], path)
        elif condition == "class":
            cond = Space((), vocab=len(tensors["label_emb.weight"]), id="labels")
        network, config = GENERATORS.get("adm"), config_of(tensors, layout)
        claim(run / config.arm)
        model = build(config, network, Space((channels, side, side), id="pixels"), cond)
        found = {f"network.{key}": value for key, value in ours(tensors, layout).items()}
        if model.null is not None:
            found["null"] = torch.zeros_like(model.null)
        kept = {LIVE + key: value for key, value in original.live.items()}
        return save_generator(run, model, found, side, kept, path, by_kind=layout.by_kind)

    @staticmethod
    def write(run: Path, path: Path) -> None:
        """Turn `run`/adm (adm-class, adm-none) into an original checkpoint.

        Without the live weights of a converted file the averaged ones stand in for them.
        """
        part, live = load_generator(
            run, "adm", {"condition_path": "time", "self_condition": False, "groups": _unet.GROUPS}
        )
        config, by_kind = part.config, part.facts.get("by_kind", False)
        layout = Layout(
            part.facts["image_size"], head_width=config["head_width"], heads=config.get("heads"), by_kind=by_kind
        )
        average = theirs(part.tensors, config["condition"], layout)
        live = {key.removeprefix(LIVE): value for key, value in live.items()}
        if config["condition"] == "representation":
            live = live or average
        write_original(path, average, live)


def config_of(tensors: Mapping[str, Tensor], layout: Layout) -> Any:
    """Return the configuration of an original network, sampled as published."""
    inputs, outputs = tensors["input_blocks.0.0.weight"].shape[1], len(tensors["out.2.weight"])
    return GENERATORS.get("adm").Config(
        **_unet.shape_of(tensors, layout.side),
        head_width=layout.head_width,
        heads=layout.heads,
        time_width=tensors["time_embed.0.weight"].shape[1],
        condition=condition_of(tensors),
        condition_dropout=0.0,
        process={
            "name": "gaussian",
            "schedule": layout.schedule,
            "variance": "learned_range" if outputs == 2 * inputs else "fixed_large",
        },
        sampler={"name": "ddpm", "steps": 250, "spacing": "linspace", "clip": True},
    )


def condition_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the condition of an original network."""
    return next((kind for kind, name in COND.items() if f"{name}.weight" in tensors), "none")


def layout_of(tensors: Mapping[str, Tensor], args: Any, path: Path) -> Layout:
    """Return what the arguments of an original network say of it, or what was published of its shape.

    Raises:
        UserError: there are neither.
    """
    side = getattr(args, "image_size", None)
    if side is not None:
        schedule = getattr(args, "noise_schedule", "cosine" if side == 64 else "linear")
        by_kind = getattr(args, "use_new_attention_order", False)
        width = getattr(args, "num_head_channels", 64)
        if width > 0:
            return Layout(int(side), schedule, head_width=width, by_kind=by_kind)
        return Layout(int(side), schedule, heads=args.num_heads, by_kind=by_kind)
    multipliers = tuple(_unet.shape_of(tensors, 1)["multipliers"])
    if multipliers not in PUBLISHED:
        known = ", ".join(str(layout.side) for layout in PUBLISHED.values())
        raise UserError(
            f"{path} does not say how it was trained, and has not the shape of one of the networks published for "
            f"{known} px: those alone can be converted"
        )
    return PUBLISHED[multipliers]


def ours(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return original tensors under our names; a table of classes gets a null row, which these models never saw."""
    found = {}
    for key, value in tensors.items():
        if ".qkv." in key and not layout.by_kind:
            found[_unet.our_name(key, INNER)] = _by_kind(value, layout.count(len(value) // 3))
        elif ".qkv." in key or ".proj_out." in key:
            found[_unet.our_name(key, INNER)] = value.flatten(1) if value.ndim == 3 else value
        elif key == "label_emb.weight":
            found["cond.embed.weight"] = torch.cat([value, torch.zeros_like(value[:1])])
        elif key.startswith("rep_proj."):
            found[key.replace("rep_proj", "cond.embed")] = value
        else:
            found[_unet.our_name(key, INNER)] = value
    return found


def theirs(tensors: Mapping[str, Tensor], condition: str, layout: Layout) -> dict[str, Tensor]:
    """Return our tensors, `network. ...`, under the original names."""
    found = {}
    for name, value in tensors.items():
        key = name.removeprefix("network.")
        if key == "null":
            continue
        if key.startswith("cond.embed."):
            found[key.replace("cond.embed", COND[condition])] = value[:-1] if condition == "class" else value
            continue
        if ".attention.qkv." in key and not layout.by_kind:
            value = _by_head(value, layout.count(len(value) // 3))
        attends = ".attention." in key and key.endswith("weight")
        found[_unet.their_name(key, INNER)] = value[..., None] if attends else value
    return found


def _by_kind(value: Tensor, heads: int) -> Tensor:
    """Reorder rows from (head, query-key-value) to (query-key-value, head), and drop the length of a kernel."""
    return value.reshape(heads, 3, -1, *value.shape[1:2]).transpose(0, 1).flatten(0, 2)


def _by_head(value: Tensor, heads: int) -> Tensor:
    """Undo `_by_kind`, apart from the kernel."""
    return value.reshape(3, heads, -1, *value.shape[1:]).transpose(0, 1).flatten(0, 2)
