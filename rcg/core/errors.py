"""The exception that a user is meant to read, and the hint that names the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that a person can fix; its text is one sentence that names the file, key or shape at fault.

    Command-line tools print the text without a traceback and exit with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'? (known: ...)` for the nearest known name, or the known names if none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}? (known: {', '.join(names)})"
    return f"known: {', '.join(names) or 'none'}"
