"""The lock of a run's folder: one command writes into it at a time."""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from rcg.core.checkpoint import atomic
from rcg.core.console import first_process, warn
from rcg.core.errors import UserError

GRACE = 20.0
"""Seconds after the end of a command in which its loader processes, which notice it late, may still hold the lock."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks answer."""
_held: set[Path] = set()


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the lock of a run, which ends with the process however that ends; inside this block it may be held again.

    Of several launched processes the first one holds it.

    Raises:
        UserError: another command writes into the run, or the run is a file.
    """
    folder = Path(os.path.expanduser(run)).resolve()
    if folder in _held or not first_process():
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run={run} is a file, but a folder is needed: choose another run=")
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    file, owner = folder / ".lock", folder / ".lock-owner.json"
    lock = FileLock(file)
    _acquire(lock, owner, run)
    _held.add(folder)
    try:
        with atomic(owner) as temporary:
            temporary.write_text(json.dumps(_description()), encoding="utf-8")
        yield
    finally:
        _held.discard(folder)
        owner.unlink(missing_ok=True)
        _forget_empty(made, file)
        lock.release()


def _acquire(lock: FileLock, owner: Path, run: Path) -> None:
    """Take the lock; on a file system without locks, say so and go on."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = _read(owner)
        if _is_gone(holder):
            try:
                lock.acquire(timeout=GRACE)
                return
            except Timeout:
                holder = _read(owner)
        who = "{command} (process {pid} on {host}, since {since})".format(**holder) if holder else "another command"
        hint = "" if holder else f"; if none is running, delete {lock.lock_file}"
        raise UserError(f"{who} is writing into {run}: wait until it has ended, or choose another run={hint}") from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        warn(f"{run} is on a file system without locks ({error}): start no second command in it")


def _description() -> dict[str, Any]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"command": command, "pid": os.getpid(), "host": platform.node(), "since": since}


def _read(owner: Path) -> dict[str, Any] | None:
    """Return the description of the holder, None where it has not written it yet."""
    try:
        found = json.loads(owner.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() == _description().keys() else None


def _is_gone(holder: dict[str, Any] | None) -> bool:
    return holder is None or (holder["host"] == platform.node() and not psutil.pid_exists(holder["pid"]))


def _forget_empty(made: Sequence[Path], file: Path) -> None:
    """Leave none of the folders behind that were made for the lock `file`, deepest first, where nothing was written."""
    if made and all(path == file for path in made[0].iterdir()):
        file.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # another command may write there by now
                folder.rmdir()
