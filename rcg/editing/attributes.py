"""From tables of attributes, folders of examples, or images alone to directions of z."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rcg.core.console import say
from rcg.core.contracts import Space
from rcg.core.errors import UserError, nearest
from rcg.editing.directions import Direction, fit_direction, principal_directions
from rcg.editing.images import SquareImage, read_images
from rcg.pipeline import Pipeline

BATCH = 64
"""Images that are encoded at a time."""


def read_table(path: Path) -> dict[str, dict[str, float]]:
    """Read the attributes of images by the names of their files.

    Args:
        path: a CSV file whose first column, or a JSON file whose keys, are names of files; other columns, or keys, are
            attributes: 0 and 1, or any numbers.

    Raises:
        UserError: it is neither, an image occurs twice, or a value is missing or no number.
    """
    try:
        text = path.read_text(encoding="utf-8")
        table = json.loads(text) if path.suffix == ".json" else _rows(text, path)
        return {str(name): {str(key): _number(value) for key, value in row.items()} for name, row in table.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is no table of attributes ({error}): the first column of a CSV file names pictures, the others "
            f"hold numbers"
        ) from None


def _rows(text: str, path: Path) -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(text.splitlines(), restkey="too much"):
        name, *rest = row.items()
        if name[1] in table:
            raise UserError(f"{path} has two rows for {name[1]}")
        table[name[1]] = dict(rest)
    return table


def _number(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def from_table(pipeline: Pipeline, folder: Path, path: Path, names: Sequence[str] | None = None) -> list[Direction]:
    """Fit a direction for each attribute of a table of the images in a folder.

    Args:
        pipeline: whose representation to work in.
        folder: of the pictures.
        path: of the table, see `read_table`.
        names: of the attributes; None: all of the table.

    Raises:
        UserError: the table has none of the images, or lacks an attribute, of one of them or of all.
    """
    table = read_table(path)
    images = [image for image in read_images([folder], pipeline.image_size) if image.name in table]
    if not images:
        raise UserError(f"{path} names none of the pictures in {folder}, but {_some(table)}")
    known = list(table[images[0].name])
    chosen = list(names or known)
    for name in chosen:
        without = [image.name for image in images if name not in table[image.name]]
        if without:
            raise UserError(f"{path} has no attribute {name!r} of {_some(without)}; {nearest(name, known)}")
    if not chosen:
        raise UserError(f"{path} names pictures, but has no attribute of them: add a column of numbers")
    z = represent(pipeline, images)
    values = {name: torch.tensor([table[image.name][name] for image in images]) for name in chosen}
    return [fit_direction(name, z, values[name], _space(pipeline)) for name in chosen]


def from_examples(pipeline: Pipeline, name: str, positive: Path, negative: Path) -> Direction:
    """Fit the direction `name` from the images of one folder, `negative`, to those of another, `positive`."""
    groups = [read_images([folder], pipeline.image_size) for folder in (positive, negative)]
    labels = torch.tensor([1.0] * len(groups[0]) + [0.0] * len(groups[1]))
    return fit_direction(name, represent(pipeline, groups[0] + groups[1]), labels, _space(pipeline))


def from_variance(pipeline: Pipeline, folder: Path, count: int) -> list[Direction]:
    """Return the directions along which the images of a folder vary most."""
    z = represent(pipeline, read_images([folder], pipeline.image_size))
    return principal_directions(z, count, _space(pipeline))


def save(directions: Sequence[Direction], folder: Path) -> None:
    """Write each direction into a folder, and say how well it is known."""
    for direction in directions:
        path = folder / f"{direction.file_name}.safetensors"
        direction.save(path)
        say(f"{path}: {direction.quality}")


def represent(pipeline: Pipeline, images: Sequence[SquareImage]) -> Tensor:
    """Return z `(N, d)` of images, on the CPU."""
    batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return torch.cat([pipeline.represent(torch.stack([image.pixels for image in batch])).cpu() for batch in batches])


def _space(pipeline: Pipeline) -> Space:
    return pipeline.representation.space


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
