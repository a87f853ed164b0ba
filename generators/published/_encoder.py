"""The frozen encoder that RCG's checkpoints carry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rcg.core import checkpoint
from rcg.core import pretrained as weights
from rcg.core.contracts import Space
from rcg.core.registry import ENCODERS
from rcg.encoding.representation import Representation, Transform, encoder_part

PREFIX = "pretrained_encoder."


def read(tensors: Mapping[str, Tensor], path: Path) -> Any:
    """Rebuild the MoCo v3 encoder that the checkpoint carries; None where it carries none."""
    found = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}
    if "head.6.weight" not in found:
        return None
    width, _, _, patch = found["patch_embed.proj.weight"].shape
    grid = round((found["pos_embed"].shape[1] - 1) ** 0.5)
    sizes = {384: "vit_small", 768: "vit_base", 1024: "vit_large"}
    network = ENCODERS.get("moco_v3")
    config = network.Config(
        arch=sizes.get(width, "vit_base"),
        width=None if width in sizes else width,
        depth=None if width in sizes else len({key.split(".")[1] for key in found if key.startswith("blocks.")}),
        patch=patch,
        input_size=grid * patch,
        projector_hidden=found["head.0.weight"].shape[0],
        projector_dim=found["head.6.weight"].shape[0],
    )
    encoder = network(config, load=False)
    weights.fit(encoder, encoder.rename(found), path)
    return encoder


def space(encoder: Any, width: int, path: Path) -> Space:
    """Return the space of the representations that the checkpoint was trained on, `(width,)`."""
    return Representation(encoder, Transform("per_sample")).space if encoder else Space((width,), id=f"of {path.name}")


def save(encoder: Any, run: Path) -> Path:
    """Write the encoder into `run`, and return where."""
    path = run / "encoder" / checkpoint.FILE
    checkpoint.save(path, encoder_part(encoder, 256, {"fingerprint": ""}))
    return path


def original(run: Path) -> dict[str, Tensor]:
    """Return the tensors of the encoder in `run` under their original names; none where there is no encoder."""
    path = run / "encoder" / checkpoint.FILE
    if not path.is_file():
        return {}
    return {f"{PREFIX}{key.removeprefix('trunk.')}": value for key, value in checkpoint.load(path).tensors.items()}
