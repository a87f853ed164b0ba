"""Batches of images and published statistics in .npz files, in the layout of guided-diffusion.

An .npz file may come from anywhere: nothing in it is unpickled, and no more memory is taken than the file can fill.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from rcg.core.errors import UserError, nearest_file

COMPRESSIONS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
"""The compressions that numpy writes, and how many times as large as a packed file its content can be."""
MAX_WIDTH = 2**14
"""Most features of published statistics; those of the FID are 2048."""


class _Array(NamedTuple):
    """An array in an archive: where its values start, in rows, and what they are."""

    file: IO[bytes]
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype
    checksum: int


class NpzImages(Dataset[dict[str, Tensor]]):
    """The images `arr_0`, uint8 `(N, S, S, 3)`, of an .npz file, read one after another without unpacking the rest."""

    in_memory = True  # one reader goes through the file; several would each unpack it from the start

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            UserError: it is not an .npz file, or its `arr_0` is not `(N, S, S, 3)` uint8 with N and S above 0.
        """
        if "arr_0" not in array_names(path):
            raise UserError(f"{path} holds no arr_0: a batch of images is expected")
        self.path = path
        self._array = _open(path, "arr_0")
        self.fingerprint, self.shape = f"{self._array.checksum:08x}", self._array.shape
        is_square = len(self.shape) == 4 and self.shape[1] == self.shape[2] and self.shape[3] == 3
        if not is_square or self._array.dtype != np.uint8:
            raise UserError(f"{path}: arr_0 must be (N, S, S, 3) uint8, not {self.shape} {self._array.dtype}")
        if 0 in self.shape:
            raise UserError(f"{path}: arr_0 is {self.shape}, which holds no images")

    def __len__(self) -> int:
        """Return N."""
        return self.shape[0]

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Return the image `(3, S, S)` in [0, 1] at `position`.

        Raises:
            UserError: the file ends before it, or is damaged.
        """
        size = math.prod(self.shape[1:])
        try:
            self._array.file.seek(self._array.start + position * size)
            content = self._array.file.read(size)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path} is damaged at image {position} of {len(self)} ({error})") from None
        if len(content) < size:
            raise UserError(f"{self.path} is truncated: image {position} of {len(self)} is incomplete")
        image = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(self.shape[1:])
        return {"image": image.permute(2, 0, 1) / 255}


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays in an .npz file.

    Raises:
        UserError: it is not an .npz file, or has two arrays of one name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; {nearest_file(path, '.npz')}") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an .npz file that can be read ({error})") from None
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path} holds two arrays called {twice[0]}: only one can be meant")
    return names


def read_moments(path: Path, mean: str, covariance: str) -> tuple[Tensor, Tensor]:
    """Return published statistics: a mean `(D,)` and a covariance `(D, D)`, float64.

    Raises:
        UserError: one of the arrays is damaged, or not finite, or they are no mean and covariance of D features.
    """
    first, second = _open(path, mean), _open(path, covariance)
    shapes = f"{mean} {first.shape} {first.dtype} and {covariance} {second.shape} {second.dtype}"
    width = first.shape[0] if len(first.shape) == 1 else 0
    if not 0 < width <= MAX_WIDTH or second.shape != (width, width) or {first.dtype.kind, second.dtype.kind} != {"f"}:
        raise UserError(
            f"{path}: {shapes} are not the mean (D,) and covariance (D, D) of features, floating-point numbers with D "
            f"up to {MAX_WIDTH}"
        )
    mu, sigma = (torch.from_numpy(_read(path, name, array)) for name, array in ((mean, first), (covariance, second)))
    for name, values in ((mean, mu), (covariance, sigma)):
        if not values.isfinite().all():
            raise UserError(f"{path}: {name} holds numbers that are not finite")
    if not torch.allclose(sigma, sigma.T, rtol=1e-3, atol=1e-6 * float(sigma.abs().max())) or sigma.diag().min() < 0:
        raise UserError(f"{path}: {covariance} is no covariance: it is not symmetric, or a variance is negative")
    return mu, sigma


def _open(path: Path, name: str) -> _Array:
    """Open an array without reading its values.

    Raises:
        UserError: it is damaged, or claims more than the file can hold, or holds Python objects.
    """
    try:
        archive = zipfile.ZipFile(path)
        entry = archive.getinfo(f"{name}.npy")
        ratio = COMPRESSIONS.get(entry.compress_type)
        if ratio is None:
            raise UserError(f"{path}: {name} is compressed in a way that numpy does not write: store it by numpy.savez")
        file = archive.open(entry)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(file)
    except UserError:
        raise
    except Exception as error:  # parsers of damaged headers raise whatever they trip over
        reason = str(error)[:80].partition("\n")[0]
        raise UserError(f"{path} is not an .npz file that can be read ({name}: {reason})") from None
    if dtype.hasobject:
        raise UserError(f"{path}: {name} holds Python objects, which are never loaded: store numbers")
    if by_columns and len(shape) > 2:  # a covariance is symmetric
        raise UserError(f"{path}: {name} is stored by columns (Fortran order), but rows are expected")
    if any(not isinstance(length, int) or length < 0 for length in shape):
        raise UserError(f"{path}: {name} claims a shape of {shape}")
    size = file.tell() + math.prod(shape) * dtype.itemsize
    if size > entry.file_size or entry.file_size > ratio * path.stat().st_size:
        raise UserError(f"{path} is truncated: {name} {shape} {dtype} takes {size} bytes, more than the file can hold")
    return _Array(file, file.tell(), tuple(shape), dtype, entry.CRC)


def _read(path: Path, name: str, array: _Array) -> NDArray[np.float64]:
    """Read an array of floating-point numbers as float64."""
    count = math.prod(array.shape)
    try:
        content = array.file.read(count * array.dtype.itemsize)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged in {name} ({error})") from None
    if len(content) < count * array.dtype.itemsize:
        raise UserError(f"{path} is truncated in {name}")
    return np.frombuffer(content, array.dtype).astype(np.float64).reshape(array.shape)
