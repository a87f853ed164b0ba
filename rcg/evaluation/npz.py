"""Batches of images and published statistics in .npz files, in the layout of guided-diffusion."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rcg.core.errors import UserError


class NpzImages(Dataset[dict[str, Tensor]]):
    """The images `arr_0`, uint8 `(N, H, W, 3)`, of an .npz file, read one after another without unpacking the rest."""

    in_memory = True  # one reader goes through the file; several would each unpack it from the start

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            UserError: it is not an .npz file, or its `arr_0` is not `(N, H, W, 3)` uint8.
        """
        self.path = path
        try:
            archive = zipfile.ZipFile(path)
            self.fingerprint = f"{archive.getinfo('arr_0.npy').CRC:08x}"
            self._file = archive.open("arr_0.npy")
            version = np.lib.format.read_magic(self._file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            self.shape, by_columns, dtype = read(self._file)
        except KeyError:
            raise UserError(f"{path} holds no arr_0: a batch of images is expected") from None
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not an .npz file that can be read ({error})") from None
        if by_columns:
            raise UserError(f"{path}: arr_0 is stored by columns (Fortran order), but images are expected by rows")
        self._start = self._file.tell()
        channels = self.shape[-1] if len(self.shape) == 4 else 0
        if channels != 3 or dtype != np.uint8:
            raise UserError(f"{path}: arr_0 must be (N, H, W, 3) uint8, not {tuple(self.shape)} {dtype}")

    def __len__(self) -> int:
        """Return N."""
        return int(self.shape[0])

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Return the image `(3, H, W)` in [0, 1] at `position`.

        Raises:
            UserError: the file ends before it.
        """
        size = int(np.prod(self.shape[1:]))
        self._file.seek(self._start + position * size)
        content = self._file.read(size)
        if len(content) < size:
            raise UserError(f"{self.path} is truncated: image {position} of {len(self)} is incomplete")
        image = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(self.shape[1:])
        return {"image": image.permute(2, 0, 1) / 255}


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays in an .npz file.

    Raises:
        UserError: it is not an .npz file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an .npz file that can be read ({error})") from None
