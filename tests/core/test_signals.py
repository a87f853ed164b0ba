"""Signals: Ctrl-C waits where it would tear something."""

import signal

import pytest

from rcg.core.signals import interrupts_held_back


def test_ctrl_c_waits_until_a_block_ends():
    done = []

    def work():
        with interrupts_held_back():
            signal.raise_signal(signal.SIGINT)
            done.append("the block")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["the block"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_nothing_is_interrupted_where_nobody_pressed_ctrl_c():
    handler = signal.getsignal(signal.SIGINT)
    with interrupts_held_back():
        assert signal.getsignal(signal.SIGINT) is not handler
    assert signal.getsignal(signal.SIGINT) is handler
