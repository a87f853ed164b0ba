"""Editing in h-space: the asymmetric reverse process (Asyrp, Kwon, Jeong, Uh, ICLR 2023).

The output of a network's bottleneck, h, is moved. If the moved prediction replaced the plain one in a whole step of
DDIM, its two parts would nearly cancel (their Theorem 1). So it replaces the estimate of clean data alone, and the
direction toward x_t stays that of the plain prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.core.contracts import Denoiser, Level, Net, Prediction, Process
from rcg.diffusion.wrappers import ProcessWrapper
from rcg.nn import timestep_embedding

TIME_WIDTH = 256
"""Width of the sinusoidal embedding of the time."""


class Evaluation(NamedTuple):
    """What a network was given, and its h.

    Attributes:
        x: `(B, inputs * C, ...)`.
        t: times, `(B,)` or `(B, 2)`.
        h: `(B, ...)`.
    """

    x: Tensor
    t: Tensor
    h: Tensor

    @property
    def time(self) -> Tensor:
        """The times `(B,)` of x."""
        return self.t if self.t.ndim == 1 else self.t[:, 0]


Shift = Callable[[Evaluation], Tensor]
"""The change `(B, ...)`, or one that broadcasts, of h `(B, ...)`."""


class Asymmetric(ProcessWrapper):
    """A process whose estimate of clean data is that of a moved h, while the estimate of the noise stays.

    Attributes:
        end: where editing ends, t_edit, as a share of the times; below it the process predicts as the wrapped one.
    """

    def __init__(
        self, process: Process[Prediction], network: Denoiser, shift: Shift, end: float, block: int | None = None
    ) -> None:
        """Move h of `network`, at `block` (see `Denoiser.bottleneck`), by `shift` from noise to `end`."""
        super().__init__(process)
        self.network, self.shift, self.end, self.bottleneck = network, shift, end, network.bottleneck(block)

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Any:
        """Evaluate the network at `x` `(B, *S)` twice: plainly, and with h moved."""
        if level.t / self.horizon < self.end:
            return self.process.predict(net, x, level, cond)
        with _watched(self.network, self.bottleneck) as seen:
            plain: Prediction = self.process.predict(net, x, level, cond)
        change = self.shift(seen[0])
        with _changed(self.bottleneck, lambda h: h + change.to(h.dtype)):
            moved: Prediction = self.process.predict(net, x, level, cond)
        return plain._replace(x0=moved.x0)


class ConditionShift:
    """How h changes with the condition, h(x_t, target) - h(x_t, source), for each sample.

    Needs no training, because the network has learned what its condition means; the source is the condition under which
    it is sampled.
    """

    def __init__(self, network: Denoiser, target: Tensor, block: int | None = None) -> None:
        """Lead toward the condition `target` `(B, D)`."""
        self.network, self.target, self.bottleneck = network, target, network.bottleneck(block)

    def __call__(self, evaluation: Evaluation) -> Tensor:
        """Return the change `(B, ...)`."""
        x, t, h = evaluation
        with _watched(self.network, self.bottleneck) as seen:
            self.network(x, t, self.target)
        return seen[0].h - h


class MeanShift:
    """The mean of the changes that other samples had at each time: one change for all samples."""

    def __init__(self) -> None:
        """Begin without any."""
        self._sums: dict[float, tuple[Tensor, int]] = {}

    def recorded(self, shift: Shift) -> Shift:
        """Return `shift`, whose changes are added to the mean."""

        def record(evaluation: Evaluation) -> Tensor:
            change = shift(evaluation).expand_as(evaluation.h)
            total, count = self._sums.get(float(evaluation.time[0]), (0, 0))
            self._sums[float(evaluation.time[0])] = (total + change.float().sum(0, keepdim=True), count + len(change))
            return change

        return record

    def __call__(self, evaluation: Evaluation) -> Tensor:
        """Return the mean change `(1, ...)` at the nearest time at which there is one."""
        time = float(evaluation.time[0])
        total, count = self._sums[min(self._sums, key=lambda known: abs(known - time))]
        return total / count


class ShiftNetwork(nn.Module):
    """A change of h for one property, f_t(h), the same at every position.

    That is two convolutions of 1x1 with a norm between them, conditioned on the time, as in Asyrp.

    Args:
        channels: of h.
        width: between the convolutions.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(channels, width, 1)
        self.time = nn.Linear(TIME_WIDTH, width)
        self.norm = nn.GroupNorm(math.gcd(width, max(1, min(32, width // 4))), width)
        self.last = nn.Conv1d(width, channels, 1)

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        """Return the change of h, maps `(B, C, h, w)` or tokens `(B, N, C)`, at times `(B,)`."""
        positions = h.transpose(1, 2) if h.ndim == 3 else h.flatten(2)  # (B, C, N)
        x = self.first(positions.float()) + self.time(timestep_embedding(t, TIME_WIDTH))[:, :, None]
        change: Tensor = self.last(F.silu(self.norm(x)))
        return change.transpose(1, 2) if h.ndim == 3 else change.view_as(h)


def scaled(shift: Shift, factor: float) -> Shift:
    """Return `factor` times a shift."""
    return lambda evaluation: factor * shift(evaluation)


def channels_of(h: Tensor) -> int:
    """Return C of h: maps `(B, C, h, w)` or tokens `(B, N, C)`."""
    return h.shape[2 if h.ndim == 3 else 1]


@torch.no_grad()
def h_of(network: Denoiser, x: Tensor, t: Tensor, cond: Tensor | None, block: int | None = None) -> Tensor:
    """Return h `(B, ...)` of x_t `(B, inputs * C, ...)` at times `(B,)`."""
    with _watched(network, network.bottleneck(block)) as seen:
        network(x, t, cond)
    return seen[0].h


@contextmanager
def _watched(network: Denoiser, bottleneck: nn.Module) -> Iterator[list[Evaluation]]:
    """Yield the list of a network's evaluations in the block."""
    seen: list[Evaluation] = []
    outputs: list[Tensor] = []
    handles = (
        bottleneck.register_forward_hook(lambda module, inputs, output: outputs.append(_h_in(output))),
        network.register_forward_hook(
            lambda module, inputs, output: seen.append(Evaluation(inputs[0], inputs[1], outputs[-1]))
        ),
    )
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _changed(bottleneck: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let `change` act on h in the block."""

    def changed(module: nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = bottleneck.register_forward_hook(changed)
    try:
        yield
    finally:
        handle.remove()


def _h_in(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
