"""From tables of attributes, classes, folders of examples, or images alone to directions of z."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from rcg.core.console import say
from rcg.core.contracts import Space
from rcg.core.errors import UserError, nearest
from rcg.data.manifest import read_rows
from rcg.editing.directions import Direction, fit_direction
from rcg.editing.encoded import EncodedImages, encode_folder
from rcg.editing.sparse_autoencoder import Features
from rcg.pipeline import Pipeline
from rcg.visual.grids import save_rows


class Table(NamedTuple):
    """Attributes of images.

    Attributes:
        path: of its file.
        rows: the attributes of each image, by the image's name.
    """

    path: Path
    rows: Mapping[str, Mapping[str, float]]


def read_table(path: Path) -> Table:
    """Read the attributes of images by the names of their files.

    Args:
        path: a CSV file whose first column, or a JSON file whose keys, are names of files; other columns, or keys, are
            attributes: 0 and 1, or any numbers.

    Raises:
        UserError: it is neither, an image occurs twice, or a value is missing or no number.
    """
    try:
        is_json = path.suffix == ".json"
        table = json.loads(path.read_text(encoding="utf-8")) if is_json else read_rows(path)
        rows = {str(name): {str(key): _number(value) for key, value in row.items()} for name, row in table.items()}
        return Table(path, rows)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is no table of attributes ({error}): the first column of a CSV file names pictures, the others "
            f"hold numbers"
        ) from None


def _number(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def from_table(
    images: EncodedImages, table: Table, space: Space, names: Sequence[str] | None = None
) -> list[Direction]:
    """Fit a direction for each attribute of a table.

    Args:
        images: of which those count that the table names.
        table: the attributes.
        space: of the representations.
        names: of the attributes; None: all of the table.

    Raises:
        UserError: the table has none of the images, or lacks an attribute, of one of them or of all.
    """
    numbers = [number for number, name in enumerate(images.names) if name in table.rows]
    if not numbers:
        raise UserError(f"{table.path} names none of the pictures in {images.source}, but {_some(table.rows)}")
    rows = {images.names[number]: table.rows[images.names[number]] for number in numbers}
    known = list(next(iter(rows.values())))
    chosen = list(names or known)
    for name in chosen:
        without = [image for image, row in rows.items() if name not in row]
        if without:
            raise UserError(f"{table.path} has no attribute {name!r} of {_some(without)}; {nearest(name, known)}")
    if not chosen:
        raise UserError(f"{table.path} names pictures, but has no attribute of them: add a column of numbers")
    values = {name: torch.tensor([row[name] for row in rows.values()]) for name in chosen}
    return [fit_direction(name, images.z[numbers], values[name], space) for name in chosen]


def from_classes(images: EncodedImages, space: Space, names: Sequence[str] | None = None) -> list[Direction]:
    """Fit a direction for each class, from the images of all others to its own.

    Args:
        images: with classes.
        space: of the representations.
        names: of the classes; None: all.

    Raises:
        UserError: the images have no classes, or not these, or a class has fewer than two of them.
    """
    if images.labels is None:
        raise UserError(
            f"the pictures of {images.source} have no classes, which are two or more folders that hold all of them: "
            f"give --table, --components or --features"
        )
    for name in names or ():
        if name not in images.classes:
            raise UserError(f"{images.source} has no class {name!r}; {nearest(name, images.classes)}")
    labels = {name: (images.labels == number).float() for number, name in enumerate(images.classes)}
    return [fit_direction(name, images.z, labels[name], space) for name in names or images.classes]


def from_examples(pipeline: Pipeline, name: str, positive: Path, negative: Path) -> Direction:
    """Fit the direction `name` from the images of one folder, `negative`, to those of another, `positive`."""
    groups = [encode_folder(pipeline, folder) for folder in (positive, negative)]
    labels = torch.tensor([1.0] * len(groups[0]) + [0.0] * len(groups[1]))
    return fit_direction(name, torch.cat([group.z for group in groups]), labels, pipeline.representation.space)


def from_features(features: Features, space: Space) -> list[Direction]:
    """Return the directions of the features of a sparse autoencoder."""
    return [
        Direction(f"feature {number + 1}", vector, space, f"in {share:.1%} of the images")
        for number, (vector, share) in enumerate(zip(features.directions, features.shares.tolist(), strict=True))
    ]


def show_features(images: EncodedImages, features: Features, path: Path, shown: int = 12, columns: int = 10) -> None:
    """Write a picture with a row of images for each of the first features: those that have most of it."""
    rows = {}
    for number, share in enumerate(features.shares[:shown].tolist()):
        strongest = features.coefficients[:, number].argsort(descending=True, stable=True)[:columns]
        pixels = torch.stack([images.load(position) for position in strongest.tolist()])
        rows[f"feature {number + 1}, in {share:.1%} of the images"] = pixels
    save_rows(rows, f"{len(features.directions)} features of {images.source}", path)


def save(directions: Sequence[Direction], folder: Path) -> None:
    """Write each direction into a folder, and say how well it is known."""
    for direction in directions:
        path = folder / f"{direction.file_name}.safetensors"
        direction.save(path)
        say(f"{path}: {direction.quality}")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
