"""The images that a person edits: files, as the squares that a run works on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from rcg.core.errors import UserError
from rcg.data.images import square
from rcg.data.picture_folder import find_pictures
from rcg.data.pictures import read_picture


class SquareImage(NamedTuple):
    """An image.

    Attributes:
        name: of its file, below the folder that was given.
        pixels: `(3, S, S)` in [0, 1].
    """

    name: str
    pixels: Tensor


class ImageFile(NamedTuple):
    """A picture, not yet read.

    Attributes:
        name: of its file, below the folder that was given.
        path: where it is.
    """

    name: str
    path: Path

    def read(self, size: int) -> SquareImage:
        """Read it as a square of `size` pixels, cropped as a data set is; raises `UserError` if it cannot be read."""
        return SquareImage(self.name, square(read_picture(self.path), size))


def find_images(folder: Path) -> list[ImageFile]:
    """Return all pictures below a folder; raises `UserError` if there are none."""
    found = [ImageFile(file.path, folder / file.path) for file in find_pictures(folder, set()).pictures]
    if not found:
        raise UserError(f"folder {folder} holds no pictures such as .png or .jpg files")
    return found


def read_images(paths: Sequence[Path], size: int, most: int | None = None) -> list[SquareImage]:
    """Read pictures, and all pictures below folders, as squares of `size` pixels, cropped as a data set is.

    Args:
        paths: files and folders.
        size: side in pixels.
        most: how many at most; None: all.

    Raises:
        UserError: a picture cannot be read, or a folder holds none.
    """
    files: list[ImageFile] = []
    for path in paths:
        files += find_images(path) if path.is_dir() else [ImageFile(path.name, path)]
    return [file.read(size) for file in files[:most]]
