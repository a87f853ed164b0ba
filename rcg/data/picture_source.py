"""Pictures wherever they lie: what a source lists of them, their labels, and the data set that reads them."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rcg.core.errors import UserError, nearest
from rcg.data.images import DataSource
from rcg.data.pictures import PLUGINS, Opened, decoded, is_picture

OFFICIAL = ("val", "validation", "valid", "test")
"""Names of the part beside `train` that is the official validation split, the first choice first."""
COMPANIONS = {
    *(".bak", ".cfg", ".cls", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".py", ".safetensors"),
    *(".toml", ".tsv", ".txt", ".xml", ".yaml", ".yml"),
}
"""Endings of files that lie beside pictures and are none: nobody misses them."""
SERVICE_FOLDERS = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
"""Folders that systems keep for themselves, in lower case; those whose names begin with a dot are passed over too."""
MAX_KINDS = 8
"""Most kinds of files that a message lists."""


class File(NamedTuple):
    """A picture in a source.

    Attributes:
        path: names it within its source, and lasts while the source grows.
        size: in bytes.
        stamp: what changes with the content: a time of modification, or a checksum.
        label: name of its class; None: it has none.
        row: its place in the index of the source, where the source has one.
    """

    path: str
    size: int
    stamp: int
    label: str | None = None
    row: int = 0


class Listing:
    """What lies in a source.

    Attributes:
        pictures: in the order of their paths.
        classes: the classes in the order of their numbers, where the source says it; else they are sorted by name.
    """

    def __init__(self) -> None:
        self.pictures: list[File] = []
        self.classes: tuple[str, ...] = ()
        self._others: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def pass_over(self, kind: str, path: str, count: int = 1) -> None:
        """Count files that are not read, of which `path` is the first."""
        self._others[kind] += count
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


class PictureSource(ABC):
    """A place that holds pictures: lists them, and opens each by its entry alone; copies in other processes do, too.

    Attributes:
        root: the folder or file.
        noun: what it is, for messages.
        prefix: of the paths, for a part of the place that a person named.
    """

    noun = "folder"
    prefix = ""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return f"{self.noun} {self.root}"

    @abstractmethod
    def find(self) -> Listing:
        """List the pictures; raises `UserError` if the place is damaged as a whole."""

    @abstractmethod
    def open(self, path: str, row: int) -> Opened:
        """Return what Pillow opens for the picture of this path and row; errors say why it cannot be read."""

    @abstractmethod
    def parts(self) -> tuple[PictureSource, PictureSource | None]:
        """Return the training and the official validation split; without these, itself and None."""

    def where(self, path: str) -> str:
        """Return where a picture is, for messages."""
        return f"{path} in {self.root}"


class PictureFiles(DataSource):
    """Pictures of a source; each is read when it is asked for.

    Images are uint8, or float32 in [0, 1] for files with 16 bits. The fingerprint is of the files' paths, sizes, times
    of modification (in .zip archives: checksums), and of the classes; copies keep it if they keep the times: `cp -p`,
    `rsync -a`.
    """

    in_memory = False

    def __init__(
        self, place: PictureSource, files: Sequence[File], labels: Tensor | None, classes: tuple[str, ...]
    ) -> None:
        """Serve `files` of `place`, with `labels` `(N,)` int64 of `classes`, if any."""
        self.place, self.labels, self.classes = place, labels, classes
        self.paths = [file.path for file in files]  # each loader process holds a copy of them
        self._rows = np.array([file.row for file in files], dtype=np.int64)
        digest = hashlib.blake2b(b"".join(os.fsencode(name) + b"\0" for name in classes), digest_size=8)
        for file in files:
            digest.update(os.fsencode(file.path) + b"\0%d\0%d\0" % (file.size, file.stamp))
        if labels is not None and any(file.label != first_folder(file.path) for file in files):
            digest.update(labels.numpy().data)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.paths)

    def open(self, index: int) -> Opened:
        """Return what Pillow opens for one picture."""
        return self.place.open(self.paths[index], int(self._rows[index]))

    def load(self, index: int) -> Tensor:
        """Decode one picture `(3, H, W)`; raises `UserError` if it has vanished or is damaged since it was found."""
        return decoded(lambda: self.open(index), self.place.where(self.paths[index]))

    def key(self, index: int) -> str:
        """Return the path within the source."""
        return self.paths[index]


def first_folder(path: str) -> str | None:
    """Return the folder of the first level that a path leads through; None: none."""
    return path.partition("/")[0] if "/" in path else None


def labels_of(names: Sequence[str | None], order: Sequence[str] = ()) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return labels `(N,)` int64 and the classes that they number.

    None, and no classes, where there are fewer than two, or a picture has none.

    Args:
        names: of the N pictures' classes; None: the picture has none.
        order: all classes; empty: those that occur, sorted.
    """
    found = {name for name in names if name is not None}
    if None in names or len(found) < 2:
        return None, ()
    classes = tuple(order) or tuple(sorted(found))
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([numbers[name] for name in names if name is not None]), classes


def class_labels(files: Sequence[File], place: PictureSource, classes: Sequence[str], train: Path) -> Tensor:
    """Return the labels `(N,)` int64 of files whose classes are those of the training pictures.

    Args:
        files: N files.
        place: where they are.
        classes: names in the order of their labels.
        train: where the training pictures are, for the message.

    Raises:
        UserError: a file is of none of these classes.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    for file in files:
        if file.label not in numbers:
            raise UserError(
                f"{place.where(file.path)} is of no class that {train} has: move it into one of its classes, or set "
                f"data.validation to a share of the training images; {nearest(file.label or file.path, numbers)}"
            )
    return torch.tensor([numbers[file.label] for file in files if file.label is not None])


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of classes without repetition: numbers by their values, else by the alphabet."""
    found = set(names)
    if all(name.isdecimal() for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))  # 1 and 01 are two names
    return tuple(sorted(found))


def official(names: Iterable[str]) -> tuple[str, str] | None:
    """Return which of some names are those of the training and of the official validation split; None without both."""
    known = {name.lower(): name for name in sorted(names)}
    validation = next((known[name] for name in OFFICIAL if name in known), None)
    return (known["train"], validation) if "train" in known and validation is not None else None


def is_service(name: str) -> bool:
    """Whether a folder of this name is hidden, or one that a system keeps for itself."""
    return name.startswith(".") or name.lower() in SERVICE_FOLDERS


def kind_of(name: str) -> str | None:
    """Return what a message calls files like this one, which is no picture; None: it is one."""
    ending = os.path.splitext(name)[1].lower()
    if is_picture(name):
        return None
    if ending in PLUGINS:
        return f"{ending}, which pip install {PLUGINS[ending]} makes readable"
    return ending or "without an ending"
