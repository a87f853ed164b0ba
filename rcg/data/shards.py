"""Data sets in a few large files: which files these are, and which of them hold the official splits."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from rcg.core.console import warn
from rcg.data.picture_folder import some, walk
from rcg.data.picture_source import OFFICIAL, PictureSource, official
from rcg.data.pictures import is_picture

ARCHIVES, TABLES = (".zip", ".tar"), (".parquet", ".arrow")
"""Endings of the files that hold many pictures."""


class Shard(NamedTuple):
    """A file that holds many pictures, and its path below the folder that a person named, without its ending."""

    path: Path
    name: str


class Shards(PictureSource):
    """Pictures in one large file, or in those of a folder, where the pictures' paths begin with the shard's name."""

    def __init__(self, root: Path, shards: Sequence[Shard]) -> None:
        """Read `shards`, which are `root` itself, or lie below it."""
        super().__init__(root)
        self.shards = tuple(shards)
        if root.is_dir():
            self.noun = "folder"

    def parts(self) -> tuple[PictureSource, PictureSource | None]:
        """Return the shards that have `train` and `val`, or one like it, as a word of their names."""
        splits = {shard: split_of(shard.name) for shard in self.shards}
        found = official(split for split in splits.values() if split)
        if found is None:
            return self._inner_parts()
        others = [shard.name for shard in self.shards if splits[shard] not in found]
        if others:
            warn(f"{self.root} has the splits {found[0]} and {found[1]}: left out {some(others)} beside them")
        train, validation = ([shard for shard in self.shards if splits[shard] == split] for split in found)
        return self._of(train), self._of(validation)

    def _of(self, shards: Sequence[Shard]) -> Self:
        return type(self)(self.root, shards)

    @abstractmethod
    def _inner_parts(self) -> tuple[PictureSource, PictureSource | None]:
        """Return what `parts` does, where the shards' names tell no splits."""

    def _path(self, shard: Shard, path: str) -> str:
        return f"{shard.name}/{path}" if self.root.is_dir() else path


def split_of(name: str) -> str:
    """Return the first word of a shard's name that names a split; empty without such a word."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((word for word in words if word in ("train", *OFFICIAL)), "")


def find_shards(root: Path) -> list[Shard]:
    """Return the shards below a folder in the order of their names; none, if there are pictures as well."""
    shards = []
    for path, below in walk(root, set()):
        if is_picture(path):
            return []
        file = Path(path)
        ending = file.suffix.lower()
        is_computed = file.name.startswith(("cache-", "tmp"))  # datasets leaves such tables beside its data
        if ending in ARCHIVES or (ending in TABLES and not is_computed):
            shards.append(Shard(file, below[: -len(file.suffix)]))
    return sorted(shards)
