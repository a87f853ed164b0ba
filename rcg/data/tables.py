"""Pictures in tables: Parquet files as the hub has them, and the folders that `save_to_disk` of datasets writes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from rcg.core.checkpoint import atomic
from rcg.core.console import say
from rcg.core.errors import UserError, nearest
from rcg.data.archives import MOST_BYTES, MOST_RATIO, SMALL
from rcg.data.picture_source import File, Listing, PictureSource, in_order
from rcg.data.records import cache_folder, digest_of
from rcg.data.shards import Shard, Shards

ROWS = 64
"""Rows of a Parquet file that are in memory at once."""
NO_LABEL = (None, -1)
"""What stands in a column of labels where a picture has none."""


class Tables(Shards):
    """Pictures in a column of tables, and their labels in another.

    Arrow files are mapped into memory, so that a row is read by its place. A row of a Parquet file cannot be read
    without some hundred others: such a file is copied once, into an Arrow file in the user's cache folder.
    """

    noun = "table"

    def __init__(self, root: Path, shards: Sequence[Shard], label: str | None = None) -> None:
        """Read `shards`, with the labels in the column `label`; None: in the one that looks like it."""
        super().__init__(root, shards)
        self.label = label
        self._rows = np.empty((0, 2), dtype=np.int64)
        self._images: tuple[str, ...] = ()
        self._files: tuple[Path, ...] = ()

    def find(self) -> Listing:
        """List the pictures; raises `UserError` for a damaged table, or one without pictures."""
        listing = Listing()
        self._files = tuple(_as_arrow(shard.path) for shard in self.shards)
        rows: list[tuple[int, int]] = []
        images = []
        for number, (shard, file) in enumerate(zip(self.shards, self._files, strict=True)):
            table = _opened(file, shard.path)
            features = _features(table.schema)
            image = _image_column(table.schema, features, shard.path)
            images.append(image)
            labels, classes = self._labels(table, features, image, shard.path)
            stamp = shard.path.stat().st_mtime_ns
            for row, size in enumerate(_sizes(table[image])):
                path = self._path(shard, str(row))
                if size is None:
                    listing.pass_over("rows without a picture", path)
                else:
                    listing.pictures.append(File(path, size, stamp, labels[row], len(rows)))
                    rows.append((number, row))
            listing.classes = listing.classes or classes
        self._images, self._rows = tuple(images), np.array(rows, dtype=np.int64).reshape(-1, 2)
        if not listing.classes:
            listing.classes = in_order(file.label for file in listing.pictures if file.label is not None)
        return listing

    def open(self, path: str, row: int) -> BytesIO:
        """Return a picture's bytes; raises `ValueError` if they are too many."""
        shard, place = self._rows[row].tolist()
        cell = _opened(self._files[shard], self.shards[shard].path)[self._images[shard]][place].as_py()
        content = cell["bytes"] if isinstance(cell, dict) else cell
        if len(content) > MOST_BYTES:
            raise ValueError(f"it takes {len(content)} bytes, which no picture does")
        return BytesIO(content)

    def where(self, path: str) -> str:
        """Return the row of a picture."""
        return f"row {path} of {self.root}"

    def _of(self, shards: Sequence[Shard]) -> Tables:
        return Tables(self.root, shards, self.label)

    def _inner_parts(self) -> tuple[PictureSource, PictureSource | None]:
        return self, None

    def _labels(
        self, table: Any, features: Mapping[str, Any], image: str, path: Path
    ) -> tuple[list[str | None], tuple[str, ...]]:
        """Return the label of each row of a table, and the classes if the table names them."""
        flat = [name for name in table.column_names if name != image]
        named = [name for name in flat if features.get(name, {}).get("_type") == "ClassLabel"]
        column = label_column(flat, named, self.label, path)
        if column is None:
            return [None] * len(table), ()
        values = table[column].to_pylist()
        if column not in named:
            return [None if value in NO_LABEL else str(value) for value in values], ()
        classes = tuple(str(name) for name in features[column]["names"])
        unknown = [value for value in values if value not in NO_LABEL and not 0 <= value < len(classes)]
        if unknown:
            raise UserError(f"{path} names {len(classes)} classes, but its column {column} holds {unknown[0]}")
        return [None if value in NO_LABEL else classes[value] for value in values], classes


def label_column(columns: Sequence[str], named: Sequence[str], wanted: str | None, path: Path) -> str | None:
    """Return the column of the labels.

    Args:
        columns: all that may be.
        named: those that hold nothing but labels.
        wanted: the one that a person named; None: `label`, or the only one of `named`.
        path: of the table, for messages.

    Returns:
        Its name; None: there is none.

    Raises:
        UserError: there is no such column, or several may be meant.
    """
    if wanted is not None and wanted not in columns:
        raise UserError(f"{path} has no column {wanted!r} (data.label); {nearest(wanted, columns)}")
    if wanted is not None or "label" in columns:
        return wanted or "label"
    if len(named) > 1:
        raise UserError(f"{path} has several columns of labels, {', '.join(named)}: choose one with data.label")
    return named[0] if named else None


def _features(schema: Any) -> dict[str, Any]:
    """Return what datasets wrote of the columns; empty: nothing that can be read."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _image_column(schema: Any, features: Mapping[str, Any], path: Path) -> str:
    """Return the column of the pictures; raises `UserError` if there is none, or if several may be meant."""
    import pyarrow.types as kinds

    def holds_bytes(kind: Any) -> bool:
        if kinds.is_struct(kind):
            place = kind.get_field_index("bytes")
            return place >= 0 and holds_bytes(kind.field(place).type)
        return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))

    columns = [field.name for field in schema if holds_bytes(field.type)]
    images = [name for name in columns if features.get(name, {}).get("_type") == "Image"] or columns
    if "image" in images:
        return "image"
    if len(images) != 1:
        found = f"the columns {', '.join(images)}" if images else f"only the columns {', '.join(schema.names)}"
        raise UserError(f"{path} holds {found}, but one column of encoded pictures, or one called image, is expected")
    return str(images[0])


def _sizes(column: Any) -> list[int | None]:
    """Return the bytes of each picture of a column, None for those that are missing or lie in other files."""
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    content = pc.struct_field(column, "bytes") if kinds.is_struct(column.type) else column
    sizes: list[int | None] = pc.binary_length(content).to_pylist()
    return sizes


def _opened(file: Path, shard: Path) -> Any:
    """Map an Arrow file into memory; raises `UserError` if it is damaged, or pyarrow is missing."""
    return _mapped(file, shard, os.getpid())


@cache  # each process maps the files that it reads once
def _mapped(file: Path, shard: Path, process: int) -> Any:
    pyarrow = _pyarrow(shard)
    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"table {shard} is damaged, or no Arrow stream: {_in_short(error)}") from None


def _as_arrow(shard: Path) -> Path:
    """Return the Arrow file of a shard, which for Parquet is a copy of its pictures and flat columns."""
    if shard.suffix.lower() == ".arrow":
        return shard
    pyarrow = _pyarrow(shard)
    status = shard.stat()
    copy = cache_folder() / f"parquet-{digest_of(str(shard.resolve()), status.st_size, status.st_mtime_ns)}.arrow"
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{copy}.lock"):
            if not copy.exists():
                say(f"{shard}: copying its pictures to {copy}, where they are read by row")
                with atomic(copy) as temporary:
                    _copy(shard, temporary, status.st_size)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"table {shard} is damaged, or cannot be copied to {copy.parent} ($XDG_CACHE_HOME): {_in_short(error)}"
        ) from None
    return copy


def _copy(shard: Path, copy: Path, size: int) -> None:
    """Write the rows of a Parquet file to an Arrow file; raises `UserError` if it is a bomb."""
    import pyarrow
    import pyarrow.parquet
    import pyarrow.types as kinds

    with pyarrow.parquet.ParquetFile(shard) as table:
        schema = table.schema_arrow
        image = _image_column(schema, _features(schema), shard)
        columns = [field.name for field in schema if field.name == image or not kinds.is_nested(field.type)]
        kept = pyarrow.schema([schema.field(name) for name in columns], schema.metadata)
        written = 0
        with pyarrow.OSFile(str(copy), "wb") as file, pyarrow.ipc.new_stream(file, kept) as stream:
            for batch in table.iter_batches(batch_size=ROWS, columns=columns):
                written += batch.nbytes
                if written > max(64 * SMALL, MOST_RATIO * size):
                    raise UserError(f"table {shard} of {size} bytes holds more than {written}, which no pictures do")
                stream.write_batch(batch.select(columns))


def _pyarrow(shard: Path) -> Any:
    """Import pyarrow; raises `UserError` if it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise UserError(f"table {shard} is read by the package pyarrow: pip install pyarrow") from None
    return pyarrow


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
