"""ADM checkpoints: of RCG (`main_adm.py`), and of guided-diffusion (Dhariwal and Nichol)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import CONVERTERS, GENERATORS
from rcg.diffusion.model import build
from rcg.encoding.run_folder import RunFolder
from rcg.generators.published import _files, _unet
from rcg.generators.published._adm import COND, Layout, to_original, to_ours
from rcg.generators.published._converter import Converter
from rcg.generators.published._files import Tensors

PUBLISHED = {
    (1, 2, 3, 4): Layout(64, schedule="cosine", by_kind=True),
    (1, 1, 2, 3, 4): Layout(128, heads=4),
    (1, 1, 2, 2, 4, 4): Layout(256),
    (1, 2, 2, 4, 4, 8, 8): Layout(512),
}
"""The networks of guided-diffusion's README by their multipliers, at 512 px of the first level's half width."""


@CONVERTERS.register
class ADMConverter(Converter):
    """Reads and writes training checkpoints of RCG and plain state dicts of guided-diffusion."""

    options = frozenset({"heads", "head_width"})

    def read(self, path: Path, run: RunFolder) -> list[Path]:
        """Turn an original checkpoint into the run's adm (adm-class, adm-none), and return the files written.

        A representation is taken to be that of the run's RDM. Side and width of a head, which the weights do not tell,
        come from the arguments in the checkpoint, or are as published.

        Raises:
            UserError: the file is not an ADM's, or its tensors do not fit the network.
        """
        original = _files.read_original(path)
        tensors = original.average
        required = {"input_blocks.1.0.in_layers.0.weight", "input_blocks.1.0.emb_layers.1.weight"}
        if not required <= tensors.keys():
            raise UserError(f"{path} is not an ADM checkpoint: it has no input_blocks.1.0.in_layers.0.weight")
        channels = tensors["input_blocks.0.0.weight"].shape[1]
        layout = layout_of(tensors, original.args, path, self.heads, self.head_width)
        condition = condition_of(tensors)
        cond = None
        if condition == "representation":
            cond = _files.cond_space(run, tensors["rep_proj.weight"].shape[1], path)
        elif condition == "class":
            cond = Space((), vocab=len(tensors["label_emb.weight"]), id="labels")
        data = Space((channels, layout.side, layout.side), id="pixels")
        model = build(config_of(tensors, layout), GENERATORS.get("adm"), data, cond)
        weights = {f"network.{key}": value for key, value in to_ours(tensors, layout).items()}
        live = {_files.LIVE + key: value for key, value in original.live.items()}
        facts = {"image_size": layout.side, "details": {"by_kind": layout.by_kind}}
        return _files.save_generator(run, model, weights, live, path, **facts)

    def write(self, run: RunFolder, path: Path) -> None:
        """Turn the run's adm (adm-class, adm-none) into an original checkpoint.

        Without the live weights of a converted file the averaged ones replace them.
        """
        foreign = {"condition_path": "time", "embedding_width": None, "groups": _unet.GROUPS}
        schedules = {"process.schedule": ("linear", "cosine")}
        part, live, _ = _files.load_generator(run, "adm", _files.DIFFUSION | foreign | schedules)
        config = part.config
        by_kind = part.facts.details.get("by_kind", False)
        layout = Layout(part.facts.image_size, head_width=config["head_width"], heads=config["heads"], by_kind=by_kind)
        average = to_original(part.tensors, config["condition"], layout)
        if config["condition"] == "representation":
            live = live or average
        _files.write_original(path, average, live)


def config_of(tensors: Tensors, layout: Layout) -> Any:
    """Return the configuration of an original network, sampled as published."""
    inputs, outputs = tensors["input_blocks.0.0.weight"].shape[1], len(tensors["out.2.weight"])
    variance = "learned_range" if outputs == 2 * inputs else "fixed_large"
    return GENERATORS.get("adm").Config(
        **_unet.shape_of(tensors, layout.side),
        head_width=layout.head_width,
        heads=layout.heads,
        time_width=tensors["time_embed.0.weight"].shape[1],
        condition=condition_of(tensors),
        condition_dropout=0.0,
        process={"name": "gaussian", "schedule": layout.schedule, "variance": variance},
        sampler={"name": "ddpm", "steps": 250, "spacing": "linspace", "clip": True},
    )


def condition_of(tensors: Tensors) -> str:
    """Return the condition of an original network."""
    return next((kind for kind, name in COND.items() if f"{name}.weight" in tensors), "none")


def layout_of(
    tensors: Tensors, args: Mapping[str, Any], path: Path, heads: int | None = None, head_width: int | None = None
) -> Layout:
    """Return the layout that the arguments of an original network state, or the published one of its shape.

    Args:
        tensors: of the network.
        args: of its training script.
        path: the file.
        heads: attention heads that a person knows; None: those of the arguments, or published ones.
        head_width: channels of a head, likewise.

    Raises:
        UserError: they are not known.
    """
    multipliers = tuple(_unet.shape_of(tensors, 1)["multipliers"])
    published = PUBLISHED.get(multipliers)
    side = int(_files.number_of(args, "image_size", published.side if published else 0, path))
    if not side:
        sides = ", ".join(str(layout.side) for layout in PUBLISHED.values())
        raise UserError(
            f"{path} does not say how it was trained, and has not the shape of one of the networks published for "
            f"{sides} px: those alone can be converted"
        )
    is_published = published is not None and published.side == side
    if published is None or not is_published:
        published = Layout(side, schedule="cosine" if side == 64 else "linear")
    layout = published._replace(
        schedule=args.get("noise_schedule", published.schedule),
        by_kind=bool(args.get("use_new_attention_order", published.by_kind)),
    )
    if heads is None and head_width is None and "num_head_channels" in args:
        head_width = int(_files.number_of(args, "num_head_channels", -1, path))
        if head_width < 1:  # -1, where the number of heads counts
            heads, head_width = int(_files.number_of(args, "num_heads", 4, path)), None
    if heads is not None:
        return layout._replace(heads=heads)
    if head_width is not None:
        return layout._replace(heads=None, head_width=head_width)
    if not is_published:
        raise UserError(
            f"{path} has multipliers {list(multipliers)} at {side} px, which were not published, and does not say how "
            f"many attention heads it has: give them as --heads, or their channels as --head-width"
        )
    return layout
