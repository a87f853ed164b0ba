"""The exception that a user is meant to read, and the hint that names the nearest known name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

MAX_SHOWN = 40
"""Most known names that a hint lists."""


class UserError(Exception):
    """An error that a person can fix; its text is one sentence that names the file, key or shape at fault.

    Command-line tools print the text without a traceback and exit with code 2.
    """


class Stopped(Exception):  # noqa: N818 - it is no error
    """A signal ended the program early, after it had saved its work; the text is one sentence that says how to go on.

    Command-line tools print the text and exit with 128 plus the number of the signal, as shells expect.
    """

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'? (known: ...)` for the nearest known name, or the known names if none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:100], names, n=5, cutoff=0.6)
    shown = names
    if len(names) > MAX_SHOWN:
        shown = [*(close or names[:5]), f"and {len(names) - len(close or names[:5])} others"]
    listed = f"known: {', '.join(shown) or 'none'}"
    return f"did you mean {close[0]!r}? ({listed})" if close else listed


def nearest_file(path: Path, *endings: str) -> str:
    """Return what `nearest` says of at most five files beside `path` with one of some endings; without: of folders."""
    try:
        with os.scandir(path.parent) as entries:
            seen = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return f"there is no folder {path.parent} either"
    names = sorted(name for name, is_dir in seen if (name.lower().endswith(endings) if endings else is_dir))
    close = difflib.get_close_matches(path.name, names, n=5, cutoff=0.5) or names[:5]
    kind = f"file that ends in {' or '.join(endings)}" if endings else "folder"
    return nearest(path.name, close) if close else f"{path.parent} holds no {kind}"
