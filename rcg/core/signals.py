"""Signals that ask a program to stop: Ctrl-C, schedulers, closed terminals, and the end of the launcher."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Windows has no SIGHUP."""


class StopRequest:
    """Whether a signal has asked the program to stop.

    Attributes:
        number: of the signal; None: none has come.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        # `accelerate launch` passes no signal on to its only process; torchrun, which numbers its processes, does.
        is_alone_under_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "LOCAL_RANK" not in os.environ
        self._launcher = os.getppid() if is_alone_under_accelerate else None

    def look(self) -> int | None:
        """Return the number of the signal, which is SIGTERM where the launcher is gone; None: go on."""
        if self.number is None and self._launcher is not None and os.getppid() != self._launcher:
            self.number = signal.SIGTERM
        return self.number


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take note of signals, so that a loop can end between two steps; a second Ctrl-C interrupts it at once."""
    request = StopRequest()

    def note(number: int, _: object) -> None:
        if request.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.number = request.number or number

    # A program that was started by nohup ignores SIGHUP, and goes on doing so.
    hangup = getattr(signal, "SIGHUP", None)
    noted = [n for n in STOP_SIGNALS if not (n == hangup and signal.getsignal(n) == signal.SIG_IGN)]
    before = {number: signal.signal(number, note) for number in noted}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Let Ctrl-C wait until the block ends.

    Where processes are forked, Python drops what is raised, and a child that is too young to know better dies.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no other thread is interrupted
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    if came:
        signal.raise_signal(signal.SIGINT)


def ignore_interrupts() -> None:
    """Let a program that ends end: another Ctrl-C has nothing to stop, and would only tear its last words."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
