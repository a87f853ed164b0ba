"""A folder of pictures in any format that Pillow reads, of any size and nesting; unreadable files are left out."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rcg.config import RUNTIME, DataConfig
from rcg.core.checkpoint import atomic
from rcg.core.console import progress
from rcg.core.errors import UserError, nearest_file
from rcg.core.registry import DATASETS

_UNDECODABLE = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow recognizes these formats, but cannot decode them
_LISTED = 5  # most unreadable files that a message lists


class ImageFolderConfig(DataConfig):
    """Settings of a folder of pictures."""

    name: str = "image_folder"
    root: Annotated[Path, RUNTIME] = Path("data")
    """Folder that is searched for pictures; its sub-folders are the classes if there are two or more and they hold all
    pictures."""


class File(NamedTuple):
    """A file below the root: its path relative to the root, its size in bytes, and its time of modification."""

    path: str
    size: int
    mtime_ns: int


@DATASETS.register
class ImageFolder:
    """The readable pictures below a folder, in the order of their paths.

    Images are uint8, or float32 in [0, 1] for files with 16 bits of gray; transparent pictures get a white background.
    Labels are the sub-folders of the first level, if there are at least two and every picture lies in one of them.
    """

    Config = ImageFolderConfig
    in_memory = False

    def __init__(self, config: ImageFolderConfig) -> None:
        """Find the pictures and decode each once, unless an earlier check of the same files was recorded.

        Raises:
            UserError: the folder is missing, or holds no readable picture.
        """
        self.root = _existing(config.root.expanduser())
        files = sorted(_find(self.root))
        if not files:
            raise UserError(f"folder {self.root} (data.root) holds no pictures such as .png or .jpg files")
        broken = _check(self.root, files)
        self._files = [file for file in files if file.path not in broken]
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
        """16 hexadecimal digits of the paths and sizes of the readable files."""
        digest = hashlib.blake2b(digest_size=8)
        for file in self._files:
            digest.update(os.fsencode(file.path) + b"\0%d\0" % file.size)
        return digest.hexdigest()


def decode(path: Path) -> Tensor:
    """Read a picture as RGB `(3, H, W)`: uint8, or float32 in [0, 1] for files with 16 bits of gray.

    Raises:
        OSError, ValueError: the file is damaged, or its white level is undefined (Pillow may raise others too).
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
    """Return the folder; raises `UserError` with the part of its path that does not exist."""
    if root.is_dir():
        return root
    if root.exists():
        raise UserError(f"{root} (data.root) is a file, but a folder of pictures is expected")
    missing = next(path for path in (root, *root.parents) if path.parent.is_dir())
    where = "" if missing == root else f" (data.root is {root})"
    raise UserError(f"there is no folder {missing}{where}; {nearest_file(missing)}")


def _find(root: Path) -> Iterator[File]:
    """Yield every file below `root` with the extension of a picture, except hidden ones."""
    formats = Image.registered_extensions().items()
    extensions = {end for end, kind in formats if kind in Image.OPEN and kind not in _UNDECODABLE}
    for folder, subfolders, names in os.walk(root, followlinks=True):
        resolved = os.path.realpath(folder)
        subfolders[:] = [name for name in subfolders if name[0] != "." and not _leads_back(resolved, name)]
        for name in names:
            path = os.path.join(folder, name)
            if name[0] != "." and os.path.splitext(name)[1].lower() in extensions and os.path.isfile(path):
                status = os.stat(path)
                yield File(Path(path).relative_to(root).as_posix(), status.st_size, status.st_mtime_ns)


def _leads_back(folder: str, name: str) -> bool:
    """Whether a sub-folder is a link to a folder above it, where the search would never end."""
    target = os.path.realpath(os.path.join(folder, name))
    return os.path.commonpath([folder, target]) == target


def _labels(paths: Sequence[str]) -> tuple[Tensor | None, tuple[str, ...]]:
    folders = [path.partition("/")[0] for path in paths if "/" in path]
    classes, labels = np.unique(folders, return_inverse=True)
    if len(folders) < len(paths) or len(classes) < 2:
        return None, ()
    return torch.from_numpy(labels), tuple(classes.tolist())


def _summary(broken: dict[str, str]) -> str:
    listed = "; ".join(f"{path} ({reason})" for path, reason in list(broken.items())[:_LISTED])
    noun = "picture" if len(broken) == 1 else "pictures"
    such_as = "among them " if len(broken) > _LISTED else ""
    return f"{len(broken)} unreadable {noun}, {such_as}{listed}"


def _check(root: Path, files: Sequence[File]) -> dict[str, str]:
    """Return the reason for each unreadable file, by path; the result is recorded until a file changes."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.blake2b(repr((PIL.__version__, str(root.resolve()))).encode(), digest_size=16)
    for file in files:
        digest.update(os.fsencode(file.path) + b"\0%d\0%d\0" % (file.size, file.mtime_ns))
    cache = home / "rcg" / f"image_folder-{digest.hexdigest()}.json"
    with suppress(OSError, ValueError):  # nothing was recorded, or only half of it
        recorded = json.loads(cache.read_text())
        if isinstance(recorded, dict):
            return recorded
    broken = _decode_all(root, files)
    with suppress(OSError), atomic(cache) as temporary:  # without a writable cache the check is merely repeated
        temporary.write_text(json.dumps(broken))
    return broken


def _decode_all(root: Path, files: Sequence[File]) -> dict[str, str]:
    with warnings.catch_warnings(action="ignore"), ThreadPool() as pool:  # Pillow's remarks on readable files
        reasons = pool.imap(_complaint, [root / file.path for file in files], chunksize=16)
        seen = progress(reasons, desc="checking pictures", total=len(files), unit="file", delay=2, leave=False)
        return {file.path: reason for file, reason in zip(files, seen, strict=True) if reason}


def _complaint(path: Path) -> str:
    """Return the reason why a picture cannot be read; empty if it can."""
    try:
        with Image.open(path) as image:
            image.draft(None, (32, 32))  # an eighth of the work for JPEG; the whole file is read nonetheless
            _rgb(image)
    except Exception as error:  # decoders of damaged files raise whatever they trip over
        return f"{type(error).__name__}: {error}".replace(str(path), path.name)
    return ""
