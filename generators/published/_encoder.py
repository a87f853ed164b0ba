"""The frozen encoder that RCG's checkpoints carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from rcg.core import checkpoint, pretrained
from rcg.core.checkpoint import Facts
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import ENCODERS
from rcg.encoding.encoder import build_encoder, encoder_part
from rcg.encoding.representation import Representation
from rcg.encoding.run_folder import RunFolder
from rcg.encoding.transform import Transform
from rcg.generators.published._files import Tensors, count, select

PREFIX = "pretrained_encoder."
SIDE = 256
"""Side of the images that these checkpoints were trained on."""
ARCHITECTURES = {(384, 12): "vit_small", (768, 12): "vit_base", (1024, 24): "vit_large"}
"""MoCo v3's published ViTs by their width and depth."""


def read(tensors: Tensors, heads: int | None, path: Path) -> Any:
    """Rebuild the MoCo v3 encoder that the checkpoint carries; None where it carries none.

    Args:
        tensors: of the checkpoint.
        heads: attention heads of an encoder of a size that was not published; the weights do not tell.
        path: the file that the tensors were read from.

    Raises:
        UserError: the heads are not known, or the tensors do not fit.
    """
    published = select(tensors, PREFIX)
    if "head.6.weight" not in published:
        return None
    width, _, _, patch = published["patch_embed.proj.weight"].shape
    depth = count(published, "blocks")
    arch = ARCHITECTURES.get((width, depth))
    if arch is None and heads is None:
        raise UserError(
            f"{path} carries an encoder of width {width} with {depth} blocks, which was not published, and its weights "
            f"do not tell the attention heads: give them as --encoder-heads"
        )
    grid = round((published["pos_embed"].shape[1] - 1) ** 0.5)
    config = ENCODERS.get("moco_v3").Config(
        arch=arch or "vit_base",
        width=None if arch else width,
        depth=None if arch else depth,
        heads=heads,
        patch=patch,
        input_size=grid * patch,
        projector_hidden=published["head.0.weight"].shape[0],
        projector_dim=published["head.6.weight"].shape[0],
    )
    encoder: Any = build_encoder(config, SIDE, load=False)
    pretrained.fit(encoder, encoder.rename(published), path)
    return encoder


def space(encoder: Any, width: int, path: Path) -> Space:
    """Return the space of the representations that the checkpoint was trained on, `(width,)`."""
    return Representation(encoder, Transform("per_sample")).space if encoder else Space((width,), id=f"of {path.name}")


def save(encoder: Any, run: RunFolder) -> list[Path]:
    """Write the encoder into the run, if there is one, and return the files that were written."""
    if encoder is None:
        return []
    checkpoint.save(run.encoder.checkpoint, encoder_part(encoder, Facts(image_size=SIDE)))
    return [run.encoder.checkpoint]


def original(run: RunFolder) -> dict[str, Tensor]:
    """Return the tensors of the run's encoder under their original names; none where there is no encoder.

    Raises:
        UserError: the original code knows no such encoder.
    """
    if not run.encoder.is_trained:
        return {}
    part = run.encoder.part()
    name, arch = part.config.get("name"), str(part.config.get("arch"))
    if name != "moco_v3" or not arch.startswith("vit_") or part.config.get("feature") != "projector":
        raise UserError(
            f"{part.source} is a {name} {arch} with feature {part.config.get('feature')}, and the original code loads "
            f"ViTs of MoCo v3 with their projector alone: move it out of the run to convert the rest"
        )
    return {f"{PREFIX}{key.removeprefix('trunk.')}": value for key, value in part.tensors.items()}
