"""A CSV file that gives each picture its label, or several attributes of which one is the label."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from rcg.core.errors import UserError, nearest_file
from rcg.data.picture_folder import some
from rcg.data.tables import label_column


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a CSV file by the names in its first column.

    Raises:
        UserError: a name occurs twice.
        ValueError: the file is no text in UTF-8.
    """
    table: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(), restkey="too much"):
        (_, name), *rest = row.items()
        if name in table:
            raise UserError(f"{path} has two rows for {name}")
        table[name] = dict(rest)
    return table


class Manifest:
    """The labels of pictures by their paths below data.root, or in their archive."""

    def __init__(self, path: Path, label: str | None) -> None:
        """Read the first column of a CSV file as paths, and the column `label`; None: the one that looks like it.

        Raises:
            UserError: it cannot be read, has no such column, or a row has no label.
        """
        self.path = path = path.expanduser()
        try:
            rows = read_rows(path)
        except FileNotFoundError:
            raise UserError(f"there is no manifest {path} (data.manifest); {nearest_file(path, '.csv')}") from None
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"manifest {path} (data.manifest) cannot be read: {error}") from None
        columns = list(next(iter(rows.values()), {}))
        column = label_column(columns, columns, label, path)
        if column is None:
            raise UserError(f"manifest {path} has no column of labels beside that of paths: path,label is expected")
        empty = [name for name, row in rows.items() if not row.get(column)]
        if empty:
            raise UserError(f"manifest {path} gives no {column} for {some(empty)}")
        self.labels = {name: row[column] for name, row in rows.items()}

    def check(self, pictures: Sequence[str]) -> None:
        """Raise `UserError` unless it has one row for each of these pictures, and no other."""
        missing = sorted(set(pictures).difference(self.labels))
        if missing:
            raise UserError(f"manifest {self.path} has no row for {some(missing)}: each picture needs one")
        extra = sorted(set(self.labels).difference(pictures))
        if extra:
            raise UserError(f"manifest {self.path} has rows for {some(extra)}, but there are no such pictures")
