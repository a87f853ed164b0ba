"""A loss of the estimate of clean data, beside that of a process, from one evaluation of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from rcg.core.contracts import EARLY, Net
from rcg.diffusion.wrappers import ProcessWrapper


class Estimate(NamedTuple):
    """What a training step knows of its estimates of clean data."""

    output: Tensor
    """The network's output `(B, outputs, *S)`, float32, with gradients."""
    x0: Tensor
    """The estimates read off it, `(B, *S)`."""
    x: Tensor
    """The clean data `(B, *S)`."""
    noise: Tensor
    """The share of noise sigma / (alpha + sigma) `(B,)`, from 0 to 1: the time of a flow, whatever the process is."""
    loss: Tensor
    """The loss of the process, a scalar, without that of an early exit."""


EstimateLoss = Callable[[Estimate], dict[str, Tensor]]
"""Returns named scalar losses of estimates."""


class WithEstimateLoss(ProcessWrapper):
    """A process of real numbers, in training, with another loss beside its own."""

    def __init__(self, process: Any, estimate_loss: EstimateLoss) -> None:
        super().__init__(process)
        self.estimate_loss = estimate_loss

    def loss(self, net: Net, x: Tensor, cond: Tensor | None) -> dict[str, Tensor]:
        """Return the losses of the process, and those of the estimate that it evaluated `net` for."""
        evaluations: list[tuple[Tensor, Tensor, Tensor]] = []

        def watched(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
            output = net(x_t, t, cond).float()
            evaluations.append((output, x_t, t))
            return output

        losses = super().loss(watched, x, cond)
        ((output, x_t, t),) = evaluations
        alpha, sigma = self.process.scales(t)
        x0 = self.process.read(output, x_t, t).x0
        own = [loss for name, loss in losses.items() if not name.startswith(EARLY)]
        estimate = Estimate(output, x0, x, sigma / (alpha + sigma), sum(own, output.new_zeros(())))
        return losses | self.estimate_loss(estimate)
