"""Folders of pictures, at any depth and through links."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rcg.core.console import warn
from rcg.data.picture_source import File, Listing, PictureSource, first_folder, is_service, kind_of, official
from rcg.data.pictures import is_picture

LISTED = 5
"""Most files that a message lists."""


class PictureFolder(PictureSource):
    """The pictures below a folder; the folders of the first level are their classes."""

    def __init__(self, root: Path, after: PictureFolder | None = None, prefix: str = "") -> None:
        """Look below `root`, whose pictures are those of `prefix` for a person.

        Folders that the listing of `after` has searched are left out, however many links lead to them.
        """
        super().__init__(root)
        self.prefix = prefix
        self._after = after
        self._seen: set[tuple[int, int]] = set()

    def find(self) -> Listing:
        """List the pictures."""
        self._seen = set() if self._after is None else set(self._after._seen)
        return find_pictures(self.root, self._seen)

    def open(self, path: str, row: int) -> Path:
        """Return the path of the file."""
        return self.root / path

    def parts(self) -> tuple[PictureFolder, PictureFolder | None]:
        """Return the folders `train` and `val`, or one like it."""
        entries = sorted(path for path in self.root.iterdir() if not is_service(path.name))
        splits = official(path.name for path in entries if path.is_dir())
        if splits is None:
            return self, None
        others = [path.name for path in entries if path.name not in splits and (path.is_dir() or is_picture(path.name))]
        if others:
            warn(f"{self.root} has the splits {splits[0]} and {splits[1]}: left out {some(others)} beside them")
        train = PictureFolder(self.root / splits[0], prefix=f"{splits[0]}/")
        return train, PictureFolder(self.root / splits[1], after=train, prefix=f"{splits[1]}/")

    def where(self, path: str) -> str:
        """Return the path of a picture."""
        return str(self.root / path)


def some(names: Sequence[str]) -> str:
    """Return the first of some names, and how many there are more."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def find_pictures(root: Path, seen: set[tuple[int, int]]) -> Listing:
    """Find every file below `root` with the ending of a picture, through links; what is hidden is passed over.

    Args:
        root: the folder.
        seen: the real folders, by device and inode, that were searched before; this search adds its own. A folder that
            several links lead to is searched once, and under its real name where that lies below `root`.
    """
    listing = Listing()
    refused = "folders that cannot be read"
    for path, below in walk(root, seen, lambda folder: listing.pass_over(refused, folder)):
        _look_at(path, below, listing)
    listing.pictures.sort()
    return listing


def walk(
    root: Path, seen: set[tuple[int, int]], refused: Callable[[str], None] = lambda folder: None
) -> Iterator[tuple[str, str]]:
    """Yield every file below `root` that is not hidden, by its path and its path below `root`, through links.

    Args:
        root: the folder.
        seen: as in `find_pictures`.
        refused: called with each folder that cannot be read.
    """
    seen |= {_identity(folder) for folder in root.resolve().parents}  # a link to one of these would lead back here
    prefix = os.path.join(root, "")

    def below(path: str) -> str:
        return path.removeprefix(prefix).replace(os.sep, "/")

    linked = deque([str(root)])
    while linked:
        start = linked.popleft()
        for folder, subfolders, names in os.walk(start, onerror=lambda error: refused(below(str(error.filename)))):
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
                    yield path, below(path)


def _look_at(path: str, below: str, listing: Listing) -> None:
    """Add a file to a listing."""
    kind = kind_of(path)
    try:
        status = os.stat(path)
    except OSError:
        listing.pass_over("links that lead nowhere" if os.path.islink(path) else "files that vanished", below)
        return
    if kind is None and stat.S_ISREG(status.st_mode):
        listing.pictures.append(File(below, status.st_size, status.st_mtime_ns, first_folder(below)))
    else:
        listing.pass_over(kind or os.path.splitext(path)[1].lower(), below)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
