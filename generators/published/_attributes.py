"""The classifiers of face attributes that come with diffusion autoencoders, as directions of z."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.editing.directions import Direction
from rcg.encoding.run_folder import RunFolder
from rcg.encoding.workspace import representation_parts
from rcg.generators.published._files import Tensors

WEIGHT = "classifier.weight"
NAMES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes",
    "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling",
    "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)  # fmt: skip
"""The attributes of CelebA, in the order of its table."""


def save(tensors: Tensors, settings: Mapping[str, Any], run: RunFolder, path: Path) -> list[Path]:
    """Write each row of a linear classifier of z as a direction into the run, and return the files written.

    Args:
        tensors: of the classifier's checkpoint.
        settings: of its training.
        run: with the autoencoder and the latent network on whose z it was trained.
        path: the checkpoint.

    Raises:
        UserError: the run has other z, or such directions, or nobody knows what the classes are.
    """
    weight, single = tensors[WEIGHT].float(), settings.get("manipulate_cls")
    count = len(weight) if weight.ndim == 2 and weight.norm(dim=1).all() else 0
    names = {len(NAMES): NAMES, 1: (single,) if isinstance(single, str) else ()}.get(count, ())
    if not names:
        raise UserError(f"{path} has a classifier of {tuple(weight.shape)}: {len(NAMES)} classes, CelebA's, have names")
    z = run.rdm.part(weights=False).facts.data if run.rdm.is_trained else None
    transform = representation_parts(run, "adm", z).get("transform")
    learned = {} if transform is None else transform.tensors
    fits = [_is_close(tensors.get(f"conds_{key}"), learned.get(key)) for key in ("mean", "std")]
    if z is None or weight.shape[1:] != z.shape or not all(fits):
        raise UserError(
            f"{path} was trained on other z than {run.path} has: convert the file with its latent network there first"
        )
    rows = zip(names, weight, strict=True)
    directions = [Direction(name, row / row.norm(), z, f"of {path.name}") for name, row in rows]
    files = {run.attributes / f"{direction.file_name}.safetensors": direction for direction in directions}
    for file in files:
        if file.exists():
            raise UserError(f"{file} is there already: move it away")
    for file, direction in files.items():
        direction.save(file)
    return list(files)


def _is_close(found: Tensor | None, own: Tensor | None) -> bool:
    """Whether there are two equal tensors `(1, D)` and `(D,)`, but for what another order of adding changes."""
    if found is None or own is None or found.shape != (1, *own.shape):
        return False
    return torch.allclose(found[0], own, rtol=1e-3, atol=1e-3)
