"""What was found out about files and takes long to find again: small files in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rcg.core.checkpoint import atomic


def cache_folder() -> Path:
    """Return the folder of the records: `rcg` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "rcg"


def digest_of(*facts: Any, files: Iterable[tuple[str, int, int]] = ()) -> str:
    """Return a name for what was found out about files of these paths, sizes and stamps, given other facts."""
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=16)
    for path, size, stamp in files:
        digest.update(os.fsencode(path) + b"\0%d\0%d\0" % (size, stamp))
    return digest.hexdigest()


def recall(name: str) -> dict[str, Any] | None:
    """Return what was recorded under a name; None: nothing, or only half of it."""
    with suppress(OSError, ValueError):
        record = json.loads((cache_folder() / f"{name}.json").read_text(encoding="utf-8"))
        return record if isinstance(record, dict) else None
    return None


def record(name: str, found: dict[str, Any]) -> None:
    """Keep what was found; without a writable cache it is merely found again."""
    with suppress(OSError), atomic(cache_folder() / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")
