"""Guidance: classifier-free guidance and autoguidance wrap a network, classifier guidance wraps a process."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rcg.config import GuidanceConfig
from rcg.core.contracts import Level, Net, Prediction, Process
from rcg.diffusion.wrappers import ProcessWrapper
from rcg.metrics.probe import LinearProbe

RAMPS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: done,
    "cosine": lambda done: (1 - math.cos(math.pi * done)) / 2,
}
"""Strength of guidance as a function of the share of sampling that is done when a step ends."""


class Guided:
    """A net that extrapolates from a worse output to a better one; it is a net itself, whatever is predicted.

    The worse output is the same network's without its condition (classifier-free guidance, Ho and Salimans, 2022), or
    that of a weaker network (autoguidance, Karras et al., NeurIPS 2024), which needs no condition at all.
    """

    def __init__(
        self,
        net: Net,
        null: Tensor | None,
        guidance: GuidanceConfig,
        horizon: float,
        weak: Net | None = None,
        steps: float = math.inf,
    ) -> None:
        """Guide `net` away from `weak`, or from its own output for the null condition.

        Args:
            net: the network to guide.
            null: the null condition `(B, ...)`; None with `weak`.
            guidance: scale, interval, ramp and channels.
            horizon: times run from 0 to this.
            weak: a worse network.
            steps: steps of sampling; a ramp reaches its top in the last one where levels are evenly spaced and
                evaluated once each, and stays below it with a shifted flow or heun.
        """
        self.net, self.null, self.weak, self.guidance = net, null, weak, guidance
        self.horizon, self.steps = horizon, steps
        self.low, self.high = (horizon * bound for bound in guidance.interval)

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        """Evaluate at `x` `(B, *S)` and one common time `t` `(B,)`."""
        time = float(t[0])
        if not self.low <= time <= self.high:
            return self.net(x, t, cond)
        if self.weak is not None:
            better, worse = self.net(x, t, cond), self.weak(x, t, cond)
        else:
            assert cond is not None
            assert self.null is not None
            both = self.net(torch.cat([x, x]), torch.cat([t, t]), torch.cat([cond, self.null]))
            better, worse = both.chunk(2)
        return self._extrapolate(better, worse, self.scale(time))

    def scale(self, time: float) -> float:
        """Return the scale of guidance at a time in [0, horizon]."""
        done = min(1.0, 1 - time / self.horizon + 1 / self.steps)
        return 1 + (self.guidance.scale - 1) * RAMPS[self.guidance.ramp](done)

    def _extrapolate(self, better: Tensor, worse: Tensor, scale: float) -> Tensor:
        """Guide the prediction, the first head of `(B, outputs, *S)`; a variance stays the better output's."""
        guided = better.clone()
        chosen = (slice(None), 0, slice(self.guidance.channels))
        guided[chosen] = worse[chosen] + scale * (better[chosen] - worse[chosen])
        return guided


class ClassifierGuided(ProcessWrapper):
    """A process whose predictions lean toward given labels (Dhariwal and Nichol, 2021), by a linear probe.

    The score gains scale * grad log p(y | x_0(x_t)), the gradient taken through the network (their Algorithm 2:
    eps - sigma * gradient), so that every sampler can be guided, and an unconditional model too.
    """

    def __init__(self, process: Process, probe: LinearProbe, labels: Tensor, scale: float) -> None:
        """Guide `process` toward `labels` `(B,)` with a strength of `scale`."""
        super().__init__(process)
        self.probe, self.labels, self.scale = probe, labels, scale

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Prediction:
        """Evaluate the network on `x` `(B, D)` and shift its estimate of the noise."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0, eps, share = self.process.predict(net, x, level, cond)
            log_p = self.probe.log_probability(x0).gather(1, self.labels.to(x.device)[:, None])
            (gradient,) = torch.autograd.grad(log_p.sum(), x)
        x, x0 = x.detach(), x0.detach()
        eps = eps.detach() - self.scale * level.sigma * gradient
        if level.alpha > 0:  # at pure noise the data cannot be solved for: the estimate stays
            x0 = (x - level.sigma * eps) / level.alpha
        return Prediction(x0, eps, share)
