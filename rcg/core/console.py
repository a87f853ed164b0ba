"""The one place that prints: once, however many processes there are."""

from __future__ import annotations

import os
import sys


def first_process() -> bool:
    """Whether this is the first of the launched processes, before they have joined as well."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str) -> None:
    """Print a line, on the first process alone."""
    if first_process():
        print(text, flush=True)


def warn(text: str) -> None:
    """Print a warning, on the first process alone."""
    if first_process():
        print(f"warning: {text}", file=sys.stderr, flush=True)
