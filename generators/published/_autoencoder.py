"""Published convolutional autoencoders as parts of a run; checkpoints of generators carry them as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from rcg.core import checkpoint, pretrained
from rcg.core.checkpoint import Facts
from rcg.core.contracts import TrainableAutoencoder
from rcg.core.errors import UserError
from rcg.core.registry import AUTOENCODERS
from rcg.encoding.autoencoder import autoencoder_part, build_autoencoder
from rcg.encoding.run_folder import RunFolder
from rcg.generators._taming import GROUPS, architecture, from_published, to_published
from rcg.generators.published._files import Tensors, select

CODEBOOK = "quantize.codebook"
SIDE = 256
"""Side of the images that these files were trained on; other sizes fit them as well."""


def read(tensors: Tensors, prefix: str, path: Path, name: str) -> TrainableAutoencoder | None:
    """Rebuild the autoencoder `name` that a generator's checkpoint carries under `prefix`; None if it carries none."""
    published = select(tensors, prefix)
    return rebuild(published, path, name) if published else None


def rebuild(published: Tensors, path: Path, name: str | None = None) -> TrainableAutoencoder:
    """Build the autoencoder that published tensors belong to, with these weights.

    Args:
        published: the tensors.
        path: the file that they were read from.
        name: which autoencoder it becomes; null: read off the tensors.

    Raises:
        UserError: there is no such autoencoder, or its tensors do not fit the network of their shapes.
    """
    tensors = from_published(published)
    has_bias, has_codebook = "encoder.conv_in.bias" in tensors, CODEBOOK in tensors
    if name is None:
        quantized = "vq" if has_bias else "vqgan"
        name = quantized if has_codebook else "kl"
    if "encoder.conv_in.weight" not in tensors or has_codebook == (name == "kl"):
        expected = "encoder.conv_in.weight" + ("" if name == "kl" else " with quantize.embedding.weight")
        raise UserError(f"{path} is not a {name} autoencoder: it has no {expected}, or more than that")
    config: dict[str, Any] = architecture(tensors)
    if has_codebook:
        config["quantizer"] = {"codes": len(tensors[CODEBOOK])}
        config["lineage"] = "taming" if has_bias else "maskgit"
    autoencoder = build_autoencoder(AUTOENCODERS.get(name).Config.model_validate(config), SIDE)
    assert isinstance(autoencoder, TrainableAutoencoder)
    pretrained.fit(autoencoder, autoencoder.rename(dict(published)), path)
    return autoencoder


def save(autoencoder: TrainableAutoencoder | None, run: RunFolder) -> list[Path]:
    """Write the autoencoder, if there is one, into the run, unless this very one is there; return the files written.

    Raises:
        UserError: another autoencoder is there.
    """
    if autoencoder is None:
        return []
    path = run.autoencoder.checkpoint
    if not path.is_file():
        checkpoint.save(path, autoencoder_part(autoencoder, Facts(image_size=SIDE)))
        return [path]
    if checkpoint.digest(checkpoint.load(path, "autoencoder").tensors) != checkpoint.digest(autoencoder.state_dict()):
        raise UserError(f"{path} holds another autoencoder than the checkpoint: choose another folder")
    return []


def original(run: RunFolder, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of the run's autoencoder under their original names after `prefix`; none if there is none.

    Raises:
        UserError: the original code would normalize other groups of channels.
    """
    if not run.autoencoder.is_trained:
        return {}
    part = run.autoencoder.part()
    if part.config["groups"] != GROUPS:
        raise UserError(
            f"{run.autoencoder.checkpoint} normalizes {part.config['groups']} groups of channels, but the original "
            f"code always {GROUPS}: train it with generator.autoencoder.groups={GROUPS} to take it there"
        )
    return {prefix + key: value for key, value in to_published(part.tensors).items()}
