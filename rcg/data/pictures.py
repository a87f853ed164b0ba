"""Files of pictures: finding them below a folder, and reading any picture that Pillow opens as RGB."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rcg.core.errors import UserError, nearest, nearest_file
from rcg.data.images import DataSource

T = TypeVar("T")

UNDECODABLE = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow recognizes, but cannot decode."""
PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".avif": "'pillow>=11.3'", ".jxl": "pillow-jxl-plugin"}
"""Packages that teach Pillow a format, by the ending of its files."""
COMPANIONS = {
    *(".bak", ".cfg", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".py", ".safetensors"),
    *(".toml", ".tsv", ".txt", ".xml", ".yaml", ".yml"),
}
"""Endings of files that lie beside pictures and are none: nobody misses them."""
SERVICE_FOLDERS = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
"""Folders that systems keep for themselves, in lower case; those whose names begin with a dot are passed over too."""
MAX_KINDS = 8
"""Most kinds of files that a message lists."""
TRANSIENT = {errno.EIO, errno.ESTALE, errno.EINTR, errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENETDOWN}
"""Errors of disks on a network that often pass."""
PAUSES = (0.1, 0.5, 2.0)
"""Seconds to wait before a read is tried again."""


class File(NamedTuple):
    """A file below the root: its path relative to the root, its size in bytes, and its time of modification."""

    path: str
    size: int
    mtime_ns: int


class Listing:
    """What lies below a folder.

    Attributes:
        pictures: in the order of their paths.
    """

    def __init__(self) -> None:
        self.pictures: list[File] = []
        self._others: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def pass_over(self, kind: str, path: str) -> None:
        """Count a file that is not read."""
        self._others[kind] += 1
        self._first.setdefault(kind, path)

    @property
    def passed_over(self) -> str:
        """The files that somebody may miss, in words, the most frequent kinds first; empty if there are none."""
        return self._count(lambda kind: kind not in COMPANIONS)

    @property
    def others(self) -> str:
        """All files that are no pictures, in words; empty if there are none."""
        return self._count(lambda kind: True)

    def _count(self, counts: Callable[[str], bool]) -> str:
        kinds = [(kind, count) for kind, count in self._others.most_common() if counts(kind)]
        shown = [f"{count} {kind} (such as {self._first[kind]})" for kind, count in kinds[:MAX_KINDS]]
        rest = sum(count for _, count in kinds[MAX_KINDS:])
        return ", ".join([*shown, f"{rest} others"] if rest else shown)


class PictureFiles(DataSource):
    """Pictures in files below a folder; each is read when it is asked for.

    Images are uint8, or float32 in [0, 1] for files with 16 bits of gray. The fingerprint is of the files' paths below
    the root, sizes, times of modification, and of the classes; copies keep it if they keep the times: `cp -p`,
    `rsync -a`.
    """

    in_memory = False

    def __init__(self, root: Path, files: Sequence[File], labels: Tensor | None, classes: tuple[str, ...]) -> None:
        """Serve `files` below `root`, with `labels` `(N,)` int64 of `classes`, if any."""
        self.root, self.labels, self.classes = root, labels, classes
        self.paths = [file.path for file in files]  # each loader process holds a copy of them
        digest = hashlib.blake2b(b"".join(os.fsencode(name) + b"\0" for name in classes), digest_size=8)
        for file in files:
            digest.update(os.fsencode(file.path) + b"\0%d\0%d\0" % (file.size, file.mtime_ns))
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.paths)

    def load(self, index: int) -> Tensor:
        """Decode one picture `(3, H, W)`; raises `UserError` if it has vanished or is damaged since it was found."""
        return read_picture(self.root / self.paths[index])

    def key(self, index: int) -> str:
        """Return the path below the root."""
        return self.paths[index]


def folder_labels(paths: Sequence[str]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return the labels `(N,)` int64 of pictures by the folders of the first level that they lie in, and these.

    None, and no folders, where there are fewer than two, or a picture lies in none.
    """
    folders = [path.partition("/")[0] for path in paths if "/" in path]
    classes, labels = np.unique(folders, return_inverse=True)
    if len(folders) < len(paths) or len(classes) < 2:
        return None, ()
    return torch.from_numpy(labels), tuple(classes.tolist())


def class_labels(files: Sequence[File], root: Path, classes: Sequence[str], train: Path) -> Tensor:
    """Return the labels `(N,)` int64 of files below `root`, whose sub-folders are those of `train`.

    Args:
        files: N files.
        root: where they are.
        classes: names of the folders in the order of their labels.
        train: the folder that has them, for the message.

    Raises:
        UserError: a file is in none of these folders.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    names = [file.path.partition("/")[0] for file in files]
    for name, file in zip(names, files, strict=True):
        if name not in numbers:
            raise UserError(
                f"{root / file.path} is of no class that {train} has: move it into one of its classes, or set "
                f"data.validation to a share of the training images; {nearest(name, numbers)}"
            )
    return torch.tensor([numbers[name] for name in names])


def existing_folder(root: Path, key: str) -> Path:
    """Return a folder with `~` expanded.

    Args:
        root: as a person typed it.
        key: the key that it was given in, for the message.

    Raises:
        UserError: it is a file, may not be read, or there is none, with the part of its path that does not exist.
    """
    try:
        root = root.expanduser()
        if root.is_dir():
            os.scandir(root).close()  # fails where the folder may not be read
            return root
        if root.exists():
            raise UserError(f"{root} ({key}) is a file, but a folder is expected")
        missing = next(path for path in (root, *root.parents) if path.parent.is_dir())
    except (OSError, RuntimeError) as error:  # expanduser raises a RuntimeError for an unknown user
        raise UserError(f"folder {root} ({key}) cannot be read: {reason(error, root)}") from None
    where = "" if missing == root else f" ({key} is {root})"
    raise UserError(f"there is no folder {missing}{where}; {nearest_file(missing)}")


def find_pictures(root: Path, seen: set[tuple[int, int]]) -> Listing:
    """Find every file below `root` with the ending of a picture, through links; what is hidden is passed over.

    Args:
        root: the folder.
        seen: the real folders, by device and inode, that were searched before; this search adds its own. A folder that
            several links lead to is searched once, and under its real name where that lies below `root`.
    """
    endings = picture_endings()
    seen |= {_identity(folder) for folder in root.resolve().parents}  # a link to one of these would lead back here
    listing = Listing()
    prefix = os.path.join(root, "")

    def below(path: str) -> str:
        return path.removeprefix(prefix).replace(os.sep, "/")

    def refused(error: OSError) -> None:
        listing.pass_over("folders that cannot be read", below(str(error.filename)))

    linked = deque([str(root)])
    while linked:
        for folder, subfolders, names in os.walk(linked.popleft(), onerror=refused):
            identity = _identity(folder)
            if identity in seen:
                subfolders.clear()
                continue
            seen.add(identity)
            subfolders[:] = sorted(name for name in subfolders if not is_service(name))
            paths = (os.path.join(folder, name) for name in subfolders)
            linked.extend(path for path in paths if os.path.islink(path))  # os.walk does not enter them
            for name in names:
                if not name.startswith("."):
                    path = os.path.join(folder, name)
                    _look_at(path, below(path), endings, listing)
    listing.pictures.sort()
    return listing


def _look_at(path: str, below: str, endings: frozenset[str], listing: Listing) -> None:
    """Add a file to a listing."""
    ending = os.path.splitext(path)[1].lower()
    try:
        status = os.stat(path)
    except OSError:
        listing.pass_over("links that lead nowhere" if os.path.islink(path) else "files that vanished", below)
        return
    if stat.S_ISREG(status.st_mode) and ending in endings:
        listing.pictures.append(File(below, status.st_size, status.st_mtime_ns))
    elif ending in PLUGINS:
        listing.pass_over(f"{ending}, which pip install {PLUGINS[ending]} makes readable", below)
    else:
        listing.pass_over(ending or "without an ending", below)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def is_service(name: str) -> bool:
    """Whether a folder of this name is hidden, or one that a system keeps for itself."""
    return name.startswith(".") or name.lower() in SERVICE_FOLDERS


@cache
def picture_endings() -> frozenset[str]:
    """Return the endings, in lower case, of the files that Pillow decodes, with the plug-ins that are installed."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401 (it registers itself)
    formats = Image.registered_extensions().items()
    return frozenset(end for end, kind in formats if kind in Image.OPEN and kind not in UNDECODABLE)


def is_picture(name: str) -> bool:
    """Whether a file of this name is read as a picture."""
    return os.path.splitext(name)[1].lower() in picture_endings()


def read_picture(path: Path) -> Tensor:
    """Read a picture of any kind as RGB `(3, H, W)`: uint8, or float32 in [0, 1] for files with 16 bits of gray.

    Transparent pictures get a white background, animations give their first frame, and a camera's orientation is
    applied. A read that fails for a moment, as on network disks, is tried again.

    Raises:
        UserError: the file is missing, damaged, too large, or its white level is undefined.
    """
    picture_endings()  # plug-ins open files by their content
    try:
        return retried(lambda: _read(path))
    except Exception as error:  # decoders of damaged files raise whatever they trip over
        raise UserError(f"picture {path} cannot be read: {reason(error, path)}") from error


def reason(error: Exception, path: Path) -> str:
    """Return why a picture cannot be read, in a few words and without its path."""
    if isinstance(error, Image.DecompressionBombError):
        return f"it claims more pixels than the {2 * (Image.MAX_IMAGE_PIXELS or 0)} that are read at most"
    if isinstance(error, FileNotFoundError):
        return "it is not there (any more)"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is no picture"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).replace(str(path), path.name).split())
    return text or type(error).__name__


def retried(read: Callable[[], T]) -> T:
    """Return what `read` returns; errors that often pass are waited for a few times before they are raised."""
    for pause in PAUSES:
        try:
            return read()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
            time.sleep(pause)
    return read()


def _read(path: Path) -> Tensor:
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning), Image.open(path) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Tensor:
    """Return an open picture as RGB `(3, H, W)`: uint8, or float32 in [0, 1] for 16 bits of gray.

    Raises:
        ValueError: its white level is undefined.
        Exception: whatever the decoder of a damaged file trips over.
    """
    if image.mode == "F":
        raise ValueError("floating-point pictures do not say which value is white")
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # these have 16 bits, which Pillow widens
        raise ValueError("pictures of 32-bit integers do not say which value is white")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.float32) / 65535
        if "transparency" in image.info:
            levels[np.asarray(image) == image.info["transparency"]] = 1
        return torch.from_numpy(levels).clamp_(0, 1).expand(3, -1, -1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
