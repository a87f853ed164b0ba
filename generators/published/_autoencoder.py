"""What the converters of published autoencoders share: they differ in the name of ours alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rcg.generators.published._taming import GROUPS, architecture, ours, theirs
from torch import Tensor

from rcg.core import checkpoint
from rcg.core import pretrained as weights
from rcg.core.errors import UserError
from rcg.core.registry import AUTOENCODERS
from rcg.encoding.autoencoder import FOLDER, autoencoder_part, build_autoencoder

SIDE = 256
"""The side of the images that these files were trained on; other sizes fit them as well."""


def read(name: str, path: Path, run: Path) -> list[Path]:
    """Turn a published file into `run`/autoencoder, an autoencoder called `name`, and return what was written.

    Raises:
        UserError: the file holds no such autoencoder, or its tensors do not fit the network that their shapes tell of.
    """
    return save(rebuild(name, weights.state_dict(weights.read(path)), path), run)


def rebuild(name: str, found: Mapping[str, Tensor], path: Path) -> Any:
    """Build the autoencoder called `name` whose published tensors are in `found`, which was read from `path`.

    Raises:
        UserError: there is no such autoencoder, or its tensors do not fit the network that their shapes tell of.
    """
    tensors = ours(found)
    if "encoder.conv_in.weight" not in tensors or ("quantize.codebook" in tensors) == (name == "kl"):
        holds = "encoder.conv_in.weight" + ("" if name == "kl" else " with quantize.embedding.weight")
        raise UserError(f"{path} is not a {name} autoencoder: it has no {holds}, or more than that")
    config: dict[str, Any] = architecture(tensors)
    if name != "kl":
        config["quantizer"] = {"codes": len(tensors["quantize.codebook"])}
        config["lineage"] = "taming" if "encoder.conv_in.bias" in tensors else "maskgit"
    autoencoder = build_autoencoder(AUTOENCODERS.get(name).Config.model_validate(config), SIDE)
    weights.fit(autoencoder, autoencoder.rename(dict(found)), path)
    return autoencoder


def save(autoencoder: Any, run: Path) -> list[Path]:
    """Write an autoencoder into `run`/autoencoder, unless this very one is there already; return what was written.

    Raises:
        UserError: another autoencoder is there.
    """
    path = run / FOLDER / checkpoint.FILE
    if not path.is_file():
        checkpoint.save(path, autoencoder_part(autoencoder, {"image_size": SIDE, "fingerprint": ""}))
        return [path]
    if checkpoint.digest(checkpoint.load(path).tensors) != checkpoint.digest(autoencoder.state_dict()):
        raise UserError(f"{path} holds another autoencoder than the checkpoint: choose another folder")
    return []


def write(name: str, run: Path, path: Path) -> None:
    """Turn `run`/autoencoder into a file that the original code loads."""
    part = checkpoint.load(run / FOLDER / checkpoint.FILE)
    if part.config["name"] != name or ("quantize.codebook" not in part.tensors and name != "kl"):
        raise UserError(f"{run / FOLDER} holds no {name} autoencoder that the original code could load")
    tensors = original(run)
    with checkpoint.atomic(path) as temporary:
        torch.save({"state_dict": tensors}, temporary)


def original(run: Path) -> dict[str, Tensor]:
    """Return the tensors of `run`/autoencoder under their original names.

    Raises:
        UserError: the original code would normalize other groups of channels.
    """
    path = run / FOLDER / checkpoint.FILE
    part = checkpoint.load(path)
    if part.config["groups"] != GROUPS:
        raise UserError(
            f"{path} normalizes {part.config['groups']} groups of channels, but the original code always {GROUPS}: "
            f"train it with generator.autoencoder.groups={GROUPS} to take it there"
        )
    return theirs(part.tensors)
