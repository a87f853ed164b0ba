"""Self-conditioning (Analog Bits; Chen, Zhang, Hinton, ICLR 2023): the network sees its last estimate of x_0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rcg.core.contracts import MASK, Level, Net, Prediction
from rcg.core.rng import draws
from rcg.diffusion.wrappers import ProcessWrapper


class SelfConditioned(ProcessWrapper):
    """A process whose network gets x_t and the previous estimate of x_0 side by side, `(B, 2C, ...)` for `(B, C, ...)`.

    It lives for one run of a sampler, or one training step: the first evaluation has no estimate and sees zeros, or
    masks in the place of tokens. In training every second sample of a batch gets an estimate made without gradients
    (Section 2.2).
    """

    def __init__(self, process: Any) -> None:
        """Start sampling, or a training step, with `process`."""
        super().__init__(process)
        self.estimate: Tensor | None = None

    def loss(self, net: Net, x: Tensor, cond: Tensor | None) -> dict[str, Tensor]:
        """Return the losses of the process, for a network that sees its own estimate for half of `x`."""

        def informed(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
            estimate = blank(x_t)
            with torch.no_grad(), draws().spread(0.5, len(x_t)) as half:
                if len(x_t[half]):
                    output = net(beside(x_t[half], None), t[half], None if cond is None else cond[half])
                    estimate[half] = clean(self.process.read(output, x_t[half], t[half]), x_t[half])
            return net(beside(x_t, estimate), t, cond)

        losses: dict[str, Tensor] = self.process.loss(informed, x, cond)
        return losses

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Any:
        """Evaluate the network on `x` `(B, *S)` beside the last estimate, and remember the new one."""
        previous = self.estimate
        prediction = self.process.predict(lambda x_t, t, c: net(beside(x_t, previous), t, c), x, level, cond)
        self.estimate = clean(prediction, x).detach()
        return prediction


def clean(prediction: Prediction | Tensor, x: Tensor) -> Tensor:
    """Return the estimate of clean data in a prediction at `x` `(B, *S)`; of tokens, the likeliest where masked."""
    if isinstance(prediction, Prediction):
        return prediction.x0
    return torch.where(x == MASK, prediction.argmax(1), x)


def blank(x: Tensor) -> Tensor:
    """Return what stands in the place of an estimate beside `x`."""
    return torch.full_like(x, 0 if x.is_floating_point() else MASK)


def beside(x: Tensor, estimate: Tensor | None) -> Tensor:
    """Put an estimate, or none, beside `x` `(B, C, ...)`: `(B, 2C, ...)`."""
    return torch.cat([x, blank(x) if estimate is None else estimate], dim=1)
