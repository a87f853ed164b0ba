"""Pictures in .zip and .tar archives, WebDataset's shards among them: each is read by its place, nothing is unpacked.

The readers of timm.data were not taken: they know no .zip archives, name classes by the last folder, keep their index
as a pickle, and answer a damaged archive with an assertion; its reader of WebDataset cannot read by index.
"""

from __future__ import annotations

import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rcg.core.console import progress, warn
from rcg.core.errors import UserError
from rcg.data.picture_folder import some
from rcg.data.picture_source import File, Listing, PictureSource, first_folder, in_order, is_service, kind_of, official
from rcg.data.pictures import picture_endings, reason
from rcg.data.records import digest_of, recall, record
from rcg.data.shards import Shard, Shards

MOST_BYTES = 2**30
"""Most bytes of one picture: as many as the pixels that Pillow decodes at most."""
MOST_RATIO = 200
"""Largest ratio of a picture's bytes to those that it takes in its archive, for pictures above `SMALL`."""
SMALL = 2**20
LONGEST_CLASS = 200
"""Most bytes of the name of a class in a .cls file of WebDataset."""
_HEADER = struct.Struct("<26x2H")
"""Lengths of the two fields between the header of a member of a .zip archive and its content."""
_METHODS = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "LZMA", 93: "Zstandard"}
TAR, ENCRYPTED = -1, -2
"""Beside the numbers of compression methods in .zip archives: a member of a .tar archive, and an encrypted one."""


class Member(NamedTuple):
    """A picture in an archive.

    Attributes:
        path: in the archive.
        size: in bytes, unpacked.
        stamp: checksum of its content in .zip archives; the archive's time of modification in .tar archives.
        offset: where its content starts in a .tar archive, its header in a .zip archive.
        packed: its bytes in the archive.
        method: how they are compressed.
    """

    path: str
    size: int
    stamp: int
    offset: int
    packed: int
    method: int


class Index:
    """What an archive holds.

    Attributes:
        members: the pictures, by their paths.
        classes: names of classes from .cls files, by the samples that they belong to.
        others: the kind of each file that is no picture, and its path.
    """

    def __init__(
        self, members: Sequence[Sequence[Any]] = (), classes: Mapping[str, str] = {}, others: Sequence[Any] = ()
    ) -> None:
        self.members = {member[0]: Member(*member) for member in members}
        self.classes = dict(classes)
        self.others = [(kind, path) for kind, path in others]

    def dump(self) -> dict[str, Any]:
        """Return the arguments that make it again, JSON-serializable."""
        return {"members": list(self.members.values()), "classes": self.classes, "others": self.others}

    def place(self, path: str, is_link: bool) -> str | None:
        """Return the path of a picture without detours; None: it is none that is read, which is noted."""
        tidy = posixpath.normpath(path)
        folders = tidy.split("/")
        if any(is_service(folder) for folder in folders if folder != ".."):
            return None
        kind = kind_of(tidy)
        if tidy.startswith("/") or ".." in folders or tidy[1:2] == ":":
            kind = "entries whose paths lead outside of the archive"
        elif is_link:
            kind = "links and special files"
        elif any(ord(sign) < 32 or ord(sign) == 127 for sign in path):
            kind, path = "names with control characters", repr(path)
        if kind is not None:
            self.others.append((kind, path))
        return tidy if kind is None else None


class Archives(Shards):
    """Pictures in archives. Their classes are the .cls files of WebDataset, or else the folders of the first level.

    If one folder holds all folders, as in the archive of a folder, those in it count. Of 0.png and 0.seg.png in a .tar
    archive only the first is a picture, as in WebDataset.
    """

    noun = "archive"

    def __init__(self, root: Path, shards: Sequence[Shard], split: str = "") -> None:
        """Read `shards`; of these the folder `split` of the first level alone, if given."""
        super().__init__(root, shards)
        self.split = split
        self._rows = np.empty((0, 6), dtype=np.int64)

    def find(self) -> Listing:
        """List the pictures; raises `UserError` for a damaged archive."""
        listing = Listing()
        indices = self._indices()
        base = _common_folder(indices) + (f"{self.split}/" if self.split else "")
        rows: list[tuple[int, ...]] = []
        for number, (shard, index) in enumerate(zip(self.shards, indices, strict=True)):
            for kind, path in index.others:
                listing.pass_over(kind, self._path(shard, path))
            is_tar = shard.path.suffix.lower() == ".tar"  # the samples of WebDataset have several files
            samples = {sample_of(path) for path in index.members if _is_plain(path)} if is_tar else set()
            for path, member in index.members.items():
                if not path.startswith(base):
                    continue
                sample = sample_of(path)
                if not _is_plain(path) and sample in samples:
                    listing.pass_over("pictures beside that of their sample", self._path(shard, path))
                    continue
                label = index.classes.get(sample) if index.classes else first_folder(path.removeprefix(base))
                listing.pictures.append(File(self._path(shard, path), member.size, member.stamp, label, len(rows)))
                rows.append((number, *member[1:]))
        self._rows = np.array(rows, dtype=np.int64).reshape(-1, 6)
        listing.pictures.sort()
        if any(index.classes for index in indices):
            listing.classes = in_order(file.label for file in listing.pictures if file.label is not None)
        return listing

    def _inner_parts(self) -> tuple[PictureSource, PictureSource | None]:
        indices = self._indices()
        base = _common_folder(indices)
        inner = [path.removeprefix(base) for index in indices for path in index.members]
        top = {path.partition("/")[0] for path in inner}
        splits = official({path.partition("/")[0] for path in inner if "/" in path})
        if splits is None:
            return self, None
        if others := sorted(top.difference(splits)):
            warn(f"{self.root} has the splits {splits[0]} and {splits[1]}: left out {some(others)} beside them")
        return Archives(self.root, self.shards, splits[0]), Archives(self.root, self.shards, splits[1])

    def _indices(self) -> tuple[Index, ...]:
        return _read_indices(tuple((shard.path, *_state(shard.path)) for shard in self.shards))

    def open(self, path: str, row: int) -> BytesIO:
        """Return a picture's bytes; raises `ValueError` if they are damaged, too many, or cannot be unpacked."""
        shard, *values = self._rows[row].tolist()
        return BytesIO(_read(self.shards[shard].path, Member(path, *values)))


def _read(archive: Path, member: Member) -> bytes:
    """Read a member by its place; `zipfile` would read the list of all members again in every process."""
    if member.size > MOST_BYTES or member.size > max(SMALL, MOST_RATIO * member.packed):
        raise ValueError(f"{member.packed} bytes would unpack to {member.size}, which no picture does")
    if member.method == ENCRYPTED:
        raise ValueError("it is encrypted: unpack the archive with its password")
    if member.method not in (TAR, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        kind = _METHODS.get(member.method, "another method")
        raise ValueError(f"it is compressed by {kind}, but only deflate is read: pack the archive again")
    with archive.open("rb") as file:
        file.seek(member.offset)
        if member.method == TAR:
            content = file.read(member.size)
        else:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or not header.startswith(b"PK\3\4"):
                raise ValueError("the archive is damaged where it should be")
            file.seek(sum(_HEADER.unpack(header)), os.SEEK_CUR)  # its name, and what else its header holds
            content = file.read(member.packed)
            if member.method == zipfile.ZIP_DEFLATED:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.size + 1)
            if zlib.crc32(content) != member.stamp:
                raise ValueError("its checksum in the archive is another")
    if len(content) != member.size:
        raise ValueError(f"the archive holds {len(content)} of its {member.size} bytes")
    return content


@lru_cache(maxsize=1)  # the official splits are listed one after the other
def _read_indices(archives: tuple[tuple[Path, int, int], ...]) -> tuple[Index, ...]:
    """Read what archives, of which size and time of modification are known, hold."""
    shown = progress(archives, desc="listing archives", unit="archive", total=len(archives), delay=2, leave=False)
    return tuple(_read_index(*archive) for archive in shown)


def _state(archive: Path) -> tuple[int, int]:
    status = archive.stat()
    return status.st_size, status.st_mtime_ns


def _read_index(archive: Path, size: int, mtime_ns: int) -> Index:
    """Return what an archive holds; that of a .tar archive, which has no list of its members, is recorded."""
    try:
        if archive.suffix.lower() == ".zip":
            return _zip_index(archive)
        name = f"tar-{digest_of(str(archive.resolve()), size, mtime_ns, sorted(picture_endings()))}"
        known = recall(name)
        if known is not None:
            with suppress(TypeError, ValueError):  # a record of something else
                return Index(**known)
        index = _tar_index(archive, mtime_ns)
        record(name, index.dump())
        return index
    except OSError as error:
        raise UserError(f"archive {archive} cannot be read: {reason(error, archive)}") from None
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"archive {archive} is damaged, or no {archive.suffix.lower()} archive without compression as a whole: "
            f"{reason(error, archive)}"
        ) from None


def _zip_index(archive: Path) -> Index:
    index = Index()
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            is_link = stat.S_ISLNK(info.external_attr >> 16)
            path = None if info.is_dir() else index.place(info.filename.replace("\\", "/"), is_link)
            if path is not None:
                method = ENCRYPTED if info.flag_bits & 1 else info.compress_type
                index.members[path] = Member(
                    path, info.file_size, info.CRC, info.header_offset, info.compress_size, method
                )
    return index


def _tar_index(archive: Path, mtime_ns: int) -> Index:
    index = Index()
    with tarfile.TarFile(archive) as opened:
        while (info := opened.next()) is not None:
            opened.members = []  # type: ignore[attr-defined] # else it keeps a million of them
            if info.isdir():
                continue
            if info.isreg() and info.name.lower().endswith(".cls") and info.size <= LONGEST_CLASS:
                file = opened.extractfile(info)
                assert file is not None  # it is a regular file
                index.classes[sample_of(posixpath.normpath(info.name))] = file.read().decode(errors="replace").strip()
            path = index.place(info.name, info.issparse() or not info.isreg())
            if path is not None:
                index.members[path] = Member(path, info.size, mtime_ns, info.offset_data, info.size, TAR)
    return index


def sample_of(path: str) -> str:
    """Return the sample of WebDataset that a file belongs to: its path up to the first dot of its name."""
    folder, name = posixpath.split(path)
    return posixpath.join(folder, name.partition(".")[0])


def _is_plain(path: str) -> bool:
    """Whether a file is a sample's picture, not one like `seg.png` of the sample."""
    return posixpath.basename(path).count(".") == 1


def _common_folder(indices: Sequence[Index]) -> str:
    """Return the folder, with a slash, that holds the folders of all pictures; empty: there are several."""
    folders = [posixpath.dirname(path) for index in indices for path in index.members]
    if not all(folders):
        return ""
    outer = [posixpath.dirname(folder) for folder in folders]
    return posixpath.join(posixpath.commonpath(outer), "") if outer else ""
