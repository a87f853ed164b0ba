"""The images that a person edits: files, as the squares that a run works on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from rcg.core.errors import UserError
from rcg.data.images import square
from rcg.data.pictures import find_pictures, read_picture


class SquareImage(NamedTuple):
    """An image.

    Attributes:
        name: of its file, below the folder that was given.
        pixels: `(3, S, S)` in [0, 1].
    """

    name: str
    pixels: Tensor


def read_images(paths: Sequence[Path], size: int, most: int | None = None) -> list[SquareImage]:
    """Read pictures, and all pictures below folders, as squares of `size` pixels, cropped as a data set is.

    Args:
        paths: files and folders.
        size: side in pixels.
        most: how many at most; None: all.

    Raises:
        UserError: a picture cannot be read, or a folder holds none.
    """
    files: list[tuple[str, Path]] = []
    for path in paths:
        if path.is_dir():
            found = [(file.path, path / file.path) for file in find_pictures(path, set()).pictures]
            if not found:
                raise UserError(f"folder {path} holds no pictures such as .png or .jpg files")
            files += found
        else:
            files.append((path.name, path))
    return [SquareImage(name, square(read_picture(path), size)) for name, path in files[:most]]
