"""Documents: reports as Markdown, JSON and self-contained HTML, from the templates beside this file."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from rcg.core.checkpoint import atomic
from rcg.core.errors import UserError

T = TypeVar("T")
TEMPLATES = Path(__file__).parent / "templates"


class Document(NamedTuple):
    """A report: sentences, a table, warnings, pictures and settings; all of it text, or numbers of JSON.

    Attributes:
        title: of the report.
        head: names of the table's columns.
        rows: of the table.
        lines: sentences above it.
        warnings: sentences about what is doubtful or missing, without their full stop.
        pictures: what the PNG files in the document's folder show, by their names.
        drawn: those that are drawings, which are scaled smoothly; the others keep their pixels.
        settings: everything else that decides the result; sections may be nested.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    lines: Sequence[str] = ()
    warnings: Sequence[str] = ()
    pictures: Mapping[str, str] = {}
    drawn: Sequence[str] = ()
    settings: Mapping[str, Any] = {}

    def write(self, folder: Path, name: str, data: Mapping[str, Any] | None = None) -> Path:
        """Write NAME.md, which is returned, and NAME.json, which holds the document, or other `data`."""
        write_json(self._asdict() if data is None else data, folder / f"{name}.json")
        path = folder / f"{name}.md"
        render("document.md", path, document=self)
        return path


def render(template: str, path: Path, **values: Any) -> None:
    """Write a document from one of the templates (`NAME.md.j2`, `NAME.html.j2`), atomically.

    Beside jinja's own filters there are `facts`, nested values as rows of a table; in Markdown `cell`, text as a cell
    of a table; and in HTML `picture`, the content of a PNG file as an address.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": _cell, "facts": _facts, "picture": _address}
    text = environment.get_template(f"{template}.j2").render(values)
    with atomic(path) as temporary:
        # Names of files may hold bytes that are no text, which Python keeps as lone surrogates.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(values: Any, path: Path) -> None:
    """Write JSON-serializable values, atomically; numbers that JSON does not have (NaN, infinity) become null."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(_numbers(values), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise _unreadable(path)
    return values


def typed(kind: type[T], values: Any, path: Path) -> T:
    """Return values of the JSON file `path` as a `kind`, a named tuple.

    Raises:
        UserError: they are none.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError:
        raise _unreadable(path) from None


def _unreadable(path: Path) -> UserError:
    return UserError(f"{path} is damaged, or was written by another version of rcg: delete it, or make it again")


def words(value: Any) -> str:
    """Write nested facts on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {words(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list):
        return "; ".join(map(words, value)) if value and isinstance(value[0], dict) else "-".join(map(str, value))
    return f"({value})" if " " in str(value) else str(value)


def _numbers(value: Any) -> Any:
    """Replace numbers that are not finite by None."""
    if isinstance(value, Mapping):
        return {name: _numbers(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    """Return text for a cell of a Markdown table, which a bar or a new line would end."""
    return " ".join(str(value).replace("|", "\\|").split())


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return nested facts as rows of a table, name and value; those of a section bear its name as well."""
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += [(f"{name}: {inner}", _text(item)) for inner, item in value.items() if item is not None]
        elif value is not None:
            rows.append((name, _text(value)))
    return rows


def _text(value: Any) -> str:
    return value if isinstance(value, str) else words(value)


def _address(path: Path) -> str:
    """Return a PNG file as the address of a picture; a page that embeds it no longer needs the file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
