"""The one exception that a user is meant to read, and the nearest-name hint that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something a person can mend: its text is one sentence that names the file, key or shape at fault.

    Command-line tools print the text without a traceback and exit with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"`-style help: the nearest known name, else all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}? (known: {', '.join(known)})"
    return f"known: {', '.join(known) or 'none'}"
