"""The one place that prints: once, however many processes there are; bars on a terminal, else lines with the time.

Within a `session`, warnings of all libraries are sentences, and what is said goes to the log file of a run as well.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, Generic, TypeVar

from tqdm import tqdm

T = TypeVar("T")

INTERVAL = 30.0
"""Seconds between two lines of progress where there is no terminal."""


class _Said:
    """What was said in a session.

    Attributes:
        warnings: each is said once.
        waiting: lines for a log file that is not there yet.
        log: the log file.
    """

    def __init__(self) -> None:
        self.warnings: set[str] = set()
        self.waiting: deque[str] = deque(maxlen=1000)
        self.log: Path | None = None

    def note(self, text: str) -> None:
        """Write lines to the log file, or keep them for one; a full disk does not end a training here."""
        self.waiting += [f"{_now()} {line}\n" for line in text.splitlines()]
        if self.log is not None:
            try:
                with self.log.open("a", encoding="utf-8", errors="replace") as file:
                    file.writelines(self.waiting)
                self.waiting.clear()
            except OSError as error:
                print(f"warning: {self.log} cannot be written: {error.strerror}", file=sys.stderr, flush=True)
                self.log = None


_said = _Said()


@contextmanager
def session() -> Iterator[None]:
    """Say each warning once, as a sentence; forget log files afterwards."""
    global _said
    _said = _Said()
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # its notices are about accelerate, not about the work
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale without ± must not end a program
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):  # for programmers
            warnings.simplefilter("ignore", category)
        warnings.showwarning = lambda message, *_: warn(" ".join(str(message).split()))
        try:
            yield
        finally:
            _said = _Said()


@contextmanager
def silence() -> Iterator[None]:
    """Print nothing in this block, and forget the log files that are opened in it."""
    global _said
    before, _said = _said, _Said()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        _said = before


def first_process() -> bool:
    """Whether this is the first of the launched processes, before they have joined as well."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str) -> None:
    """Print a line, on the first process alone."""
    if first_process():
        _print(text, sys.stdout)
        _said.note(text)


def warn(text: str) -> None:
    """Print a warning, on the first process alone, and once."""
    if first_process() and text not in _said.warnings:
        _said.warnings.add(text)
        complain(f"warning: {text}")


def complain(text: str) -> None:
    """Print a line to standard error, on the first process alone."""
    if first_process():
        _print(text, sys.stderr)
        if parent_process() is None:  # not in a worker, which has a copy of what waits for the log
            _said.note(text)


def log_to(path: Path) -> None:
    """Write what was said in this session, and what will be, to the end of a log file too."""
    if first_process():
        _said.log = path
        _said.note("")


def progress(
    iterable: Iterable[T] | None = None,
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    shown: bool = True,
    leave: bool = True,
    delay: float = 0,
    interval: float = INTERVAL,
) -> Any:
    """Return a progress bar of tqdm, or where there is no terminal something like it that prints lines.

    Args:
        iterable: what to go through; None: `update(n)` counts.
        desc: what goes on.
        unit: of the count, in the singular.
        total: the count at the end.
        initial: the count at the beginning.
        shown: whether to show anything.
        leave: whether the end is worth to be seen.
        delay: seconds before anything is shown.
        interval: seconds between two lines; infinite: lines only where `set_postfix_str` gives a text.
    """
    shown = shown and first_process()
    if sys.stderr.isatty():
        options: dict[str, Any] = {"initial": initial, "leave": leave, "delay": delay}
        return tqdm(iterable, desc, total, unit=unit, disable=not shown, **options)
    return _Lines(iterable, desc, total, unit, initial, shown, leave, interval)


class _Lines(Generic[T]):
    """Progress as lines with the time."""

    def __init__(
        self,
        iterable: Iterable[T] | None,
        desc: str,
        total: int | None,
        unit: str,
        initial: int,
        shown: bool,
        leave: bool,
        interval: float,
    ) -> None:
        self.iterable, self.desc, self.total, self.unit = iterable, desc, total, unit
        self.count = self.initial = self.printed = initial
        self.shown, self.leave, self.interval = shown, leave, interval
        self.start = self.last = time.monotonic()

    def __enter__(self) -> _Lines[T]:
        return self

    def __exit__(self, *_: object) -> None:
        if self.leave and self.count > self.printed:
            self._print("")

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self.iterable or ():
                yield item
                self.update()

    def update(self, n: int = 1) -> None:
        """Count n more."""
        self.count += n
        if time.monotonic() - self.last >= self.interval:
            self._print("")

    def set_postfix_str(self, text: str) -> None:
        """Print a line that ends with a text."""
        self._print(f", {text}")

    def _print(self, text: str) -> None:
        if not self.shown:
            return
        self.last, self.printed = time.monotonic(), self.count
        rate = (self.count - self.initial) / max(self.last - self.start, 1e-3)
        of = "" if self.total is None else f" of {self.total}"
        left = ""
        if self.total is not None and self.count < self.total and rate > 0:
            left = f", {_duration((self.total - self.count) / rate)} left"
        line = f"{self.desc}: {self.unit} {self.count}{of}, {rate:.3g}/s{left}{text}"
        _print(f"{_now()} {line}", sys.stderr)
        _said.note(line)


def _print(text: str, file: Any) -> None:
    """Print above the bars; what the encoding of the terminal lacks is escaped."""
    encoding = file.encoding or "utf-8"
    tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=file)
    file.flush()


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
