"""Any folder of pictures, of any nesting, size and kind that Pillow reads; unreadable files are left out."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from rcg.config import DataConfig
from rcg.core.errors import UserError, nearest
from rcg.core.registry import DATASETS

_NOT_PICTURES = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow recognizes these, but cannot decode them
_NAMED = 5  # unreadable files that the warning spells out


class ImageFolderConfig(DataConfig):
    """Settings of a folder of pictures."""

    name: str = "image_folder"
    root: Path = Path("data")
    """Folder that is searched for pictures; two or more sub-folders that hold them all are classes."""


class File(NamedTuple):
    """A file below the root, as the file system describes it."""

    path: str
    size: int
    mtime_ns: int


@DATASETS.register
class ImageFolder:
    """The readable pictures below a folder, in the order of their paths.

    Images are uint8, or float32 in [0, 1] where the file has 16 bits of gray; transparency is put on white.
    Labels are the first level of sub-folders when every picture lies in one of them and there are at least two.
    """

    Config = ImageFolderConfig
    in_memory = False

    def __init__(self, config: ImageFolderConfig) -> None:
        """Find the pictures and decode each once, unless an earlier check of the same files is on record.

        Raises:
            UserError: the folder is missing, or holds no picture, or none that can be read.
        """
        self.root = _existing(config.root.expanduser())
        found = sorted(_find(self.root))
        if not found:
            raise UserError(f"folder {self.root} (data.root) holds no pictures such as .png or .jpg files")
        broken = _check(self.root, found)
        self._files = [file for file in found if file.path not in broken]
        if not self._files:
            raise UserError(f"folder {self.root} (data.root) holds nothing but {_summary(broken)}")
        if broken:
            warnings.warn(f"{self.root}: left out {_summary(broken)}", stacklevel=2)
        self.labels, self.classes = _labels([file.path for file in self._files])

    def __len__(self) -> int:
        """Return the number of readable pictures."""
        return len(self._files)

    def load(self, index: int) -> Tensor:
        """Decode one picture `(3, H, W)`: uint8, or float32 in [0, 1]."""
        return decode(self.root / self._files[index].path)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the readable files' paths below the root and their sizes."""
        digest = hashlib.blake2b(digest_size=8)
        for file in self._files:
            digest.update(os.fsencode(file.path) + b"\0%d\0" % file.size)
        return digest.hexdigest()


def decode(path: Path) -> Tensor:
    """Read a picture as RGB `(3, H, W)`: uint8, or float32 in [0, 1] where the file has 16 bits of gray.

    Raises:
        OSError, ValueError: the file is damaged, or does not say which value is white (Pillow has others too).
    """
    with Image.open(path) as image:
        return _rgb(image)


def _rgb(image: Image.Image) -> Tensor:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pictures do not say which value is white")
    if image.mode.startswith("I"):
        gray = torch.from_numpy(np.asarray(image).astype(np.float32) / 65535).clamp_(0, 1)
        return gray.expand(3, -1, -1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _existing(root: Path) -> Path:
    """Return the folder, or say which part of its path is wrong."""
    if root.is_dir():
        return root
    if root.exists():
        raise UserError(f"{root} (data.root) is a file, but a folder of pictures is expected")
    missing = next(path for path in (root, *root.parents) if path.parent.is_dir())
    siblings = [path.name for path in missing.parent.iterdir() if path.is_dir()]
    where = "" if missing == root else f" (data.root is {root})"
    raise UserError(f"there is no folder {missing}{where}; {nearest(missing.name, siblings)}")


def _extensions() -> frozenset[str]:
    known = Image.registered_extensions()
    return frozenset(end for end, kind in known.items() if kind in Image.OPEN and kind not in _NOT_PICTURES)


def _find(root: Path) -> Iterator[File]:
    """Yield every file below `root` that is called like a picture, except hidden ones."""
    extensions = _extensions()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        here = os.path.realpath(folder)
        subfolders[:] = [name for name in subfolders if name[0] != "." and not _leads_back(here, name)]
        for name in names:
            path = os.path.join(folder, name)
            if name[0] != "." and os.path.splitext(name)[1].lower() in extensions and os.path.isfile(path):
                status = os.stat(path)
                yield File(Path(path).relative_to(root).as_posix(), status.st_size, status.st_mtime_ns)


def _leads_back(folder: str, name: str) -> bool:
    """Tell whether a sub-folder is a link to a folder above it, in which the search would never end."""
    target = os.path.realpath(os.path.join(folder, name))
    return os.path.commonpath([folder, target]) == target


def _labels(paths: Sequence[str]) -> tuple[Tensor | None, tuple[str, ...]]:
    folders = [path.partition("/")[0] if "/" in path else None for path in paths]
    classes = tuple(sorted({folder for folder in folders if folder is not None}))
    if None in folders or len(classes) < 2:
        return None, ()
    number = {name: label for label, name in enumerate(classes)}
    return torch.tensor([number[folder] for folder in folders if folder is not None]), classes


def _summary(broken: dict[str, str]) -> str:
    named = "; ".join(f"{path} ({reason})" for path, reason in list(broken.items())[:_NAMED])
    count = f"{len(broken)} unreadable picture{'s' if len(broken) > 1 else ''}"
    return f"{count}, {'among them ' if len(broken) > _NAMED else ''}{named}"


def _check(root: Path, files: Sequence[File]) -> dict[str, str]:
    """Return why each unreadable file is so, by path; one check serves all processes until a file changes."""
    cache = _cache_file(root, files)
    try:
        known = json.loads(cache.read_text())
        if isinstance(known, dict):
            return known
    except (OSError, ValueError):
        pass  # no check on record, or not a whole one
    broken = _decode_all(root, files)
    _write(cache, json.dumps(broken))
    return broken


def _cache_file(root: Path, files: Sequence[File]) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.blake2b(repr((PIL.__version__, str(root.resolve()))).encode(), digest_size=16)
    for file in files:
        digest.update(os.fsencode(file.path) + b"\0%d\0%d\0" % (file.size, file.mtime_ns))
    return home / "rcg" / f"image_folder-{digest.hexdigest()}.json"


def _decode_all(root: Path, files: Sequence[File]) -> dict[str, str]:
    paths = [root / file.path for file in files]
    with warnings.catch_warnings(), ThreadPool() as pool:
        warnings.simplefilter("ignore")  # Pillow's remarks on readable files
        reasons = pool.imap(_complaint, paths, chunksize=16)
        progress = tqdm(reasons, "checking pictures", len(paths), unit="file", delay=2, leave=False)
        return {file.path: reason for file, reason in zip(files, progress, strict=True) if reason}


def _complaint(path: Path) -> str:
    """Return why a picture cannot be read, or nothing."""
    try:
        with Image.open(path) as image:
            image.draft(None, (32, 32))  # an eighth of the work for JPEG; the whole file is still read
            _rgb(image)
    except Exception as error:  # decoders of damaged files raise whatever they trip over
        return f"{type(error).__name__}: {error}".replace(str(path), path.name)
    return ""


def _write(path: Path, text: str) -> None:
    """Write a file as a whole or not at all; without a writable cache the check is merely repeated."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError:
        pass
