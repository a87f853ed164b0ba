"""Self-conditioning (Analog Bits; Chen, Zhang, Hinton, ICLR 2023): the network sees its last estimate of x_0."""

from __future__ import annotations

import torch
from torch import Tensor

from rcg.contracts import Level, Net, Prediction
from rcg.processes._affine import AffineProcess, like


class SelfConditioned:
    """A process whose network gets x_t and the previous estimate of x_0 side by side, `(B, 2C, ...)` for `(B, C, ...)`.

    It lives as long as one walk from noise to data, or one training step: the first evaluation has no estimate and
    sees zeros. In training the first half of every batch gets an estimate made without gradients (Section 2.2).
    """

    def __init__(self, process: AffineProcess) -> None:
        """Start a walk, or a training step, of `process`."""
        self.process = process
        self.heads, self.horizon = process.heads, process.horizon
        self.estimate: Tensor | None = None

    def loss(self, net: Net, x: Tensor, cond: Tensor | None) -> dict[str, Tensor]:
        """Return the losses of the process, for a network that is told its own estimate for half of `x`."""

        def informed(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
            estimate = torch.zeros_like(x_t)
            half = len(x_t) // 2
            if half:
                with torch.no_grad():
                    output = net(beside(x_t[:half], None), t[:half], None if cond is None else cond[:half])
                    alpha, sigma = (like(scale, x_t) for scale in self.process.scales(t[:half]))
                    estimate[:half] = self.process.solve(output[:, 0].to(x_t.dtype), x_t[:half], alpha, sigma).x0
            return net(beside(x_t, estimate), t, cond)

        return self.process.loss(informed, x, cond)

    def levels(self, steps: int, spacing: str) -> list[Level]:
        """Return the levels of the process itself."""
        return self.process.levels(steps, spacing)

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Prediction:
        """Evaluate the network on `x` `(B, *S)` beside the last estimate, and remember the new one."""
        before = self.estimate
        found = self.process.predict(lambda x_t, t, c: net(beside(x_t, before), t, c), x, level, cond)
        self.estimate = found.x0.detach()
        return found


def beside(x: Tensor, estimate: Tensor | None) -> Tensor:
    """Put an estimate, or zeros, beside `x` `(B, C, ...)`: `(B, 2C, ...)`."""
    return torch.cat([x, torch.zeros_like(x) if estimate is None else estimate], dim=1)
