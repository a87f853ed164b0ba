"""Editing in h-space: the asymmetric reverse process (Asyrp, Kwon, Jeong, Uh, ICLR 2023).

The output of a network's bottleneck, h, is moved. If the moved prediction replaced the plain one in a whole step of
DDIM, its two parts would nearly cancel (their Theorem 1). So it replaces the estimate of clean data alone, and the
direction toward x_t stays that of the plain prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from rcg.core.contracts import Denoiser, Level, Net, Prediction, Process
from rcg.diffusion.wrappers import ProcessWrapper

Shift = Callable[[Tensor, Level], Tensor]
"""The change `(B, ...)`, or one that broadcasts, of h `(B, ...)` at a level."""


@contextmanager
def _watched(network: Denoiser, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `change` with h `(B, ...)`; what it returns, if anything, takes its place."""
    handle = network.bottleneck.register_forward_hook(lambda module, inputs, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def h_of(network: Denoiser, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
    """Return h `(B, ...)` of x_t `(B, *S)` at times `(B,)`."""
    seen: list[Tensor] = []
    with _watched(network, seen.append):
        network(x, t, cond)
    return seen[0]


def representation_shift(network: Denoiser, x: Tensor, t: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Return how h changes with the condition: h(x_t, target) - h(x_t, source), its mean over the batch, `(1, ...)`.

    Needs no training, because the network has learned what its condition means.
    """
    change = h_of(network, x, t, target) - h_of(network, x, t, source)
    return change.mean(0, keepdim=True)


class Asymmetric(ProcessWrapper):
    """A process whose estimate of clean data is that of a moved h, while the estimate of the noise stays.

    Attributes:
        end: the time where editing ends, t_edit; below it the process predicts as the wrapped one.
    """

    def __init__(self, process: Process[Prediction], network: Denoiser, shift: Shift, end: float) -> None:
        """Move h of `network` by `shift` at times of at least `end`."""
        super().__init__(process)
        self.network, self.shift, self.end = network, shift, end

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Any:
        """Evaluate the network at `x` `(B, *S)` twice: plainly, and with h moved."""
        plain: Prediction = self.process.predict(net, x, level, cond)
        if level.t < self.end:
            return plain
        with _watched(self.network, lambda h: h + self.shift(h, level).to(h.dtype)):
            moved: Prediction = self.process.predict(net, x, level, cond)
        return plain._replace(x0=moved.x0)
