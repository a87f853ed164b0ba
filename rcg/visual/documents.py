"""Documents: Markdown and self-contained HTML from the templates beside this file, and values as JSON."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from rcg.core.checkpoint import atomic

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, path: Path, **values: Any) -> None:
    """Write a document from one of the templates (`NAME.md.j2`, `NAME.html.j2`), atomically.

    Beside jinja's own filters there are `words`, and in HTML `picture`, the content of a PNG file as an address.
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
    environment.filters |= {"picture": _address, "words": words}
    with atomic(path) as temporary:
        temporary.write_text(environment.get_template(f"{template}.j2").render(values))


def write_json(values: Any, path: Path) -> None:
    """Write JSON-serializable values, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


def words(value: Any) -> str:
    """Write nested facts on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {words(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list):
        return "; ".join(map(words, value)) if value and isinstance(value[0], dict) else "-".join(map(str, value))
    return f"({value})" if " " in str(value) else str(value)


def _address(path: Path) -> str:
    """Return a PNG file as the address of a picture; a page that embeds it no longer needs the file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
