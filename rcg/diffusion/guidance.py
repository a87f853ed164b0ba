"""Guidance: away from a null condition or an early exit it wraps a network; the other kinds wrap a process.

Those are autoguidance and classifier guidance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

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


def scale_at(guidance: GuidanceConfig, time: float, horizon: float, steps: float) -> float:
    """Return the scale of guidance at a time in [0, horizon]; outside of the interval it is 1, no guidance.

    A ramp reaches its top in the last of `steps` steps where levels are evenly spaced and evaluated once each, and
    stays below it with a shifted flow or heun.
    """
    low, high = (horizon * bound for bound in guidance.interval)
    if not low <= time <= high:
        return 1.0
    done = min(1.0, 1 - time / horizon + 1 / steps)
    return 1 + (guidance.scale - 1) * RAMPS[guidance.ramp](done)


def extrapolate(better: Tensor, worse: Tensor, scale: float, channels: int | None) -> Tensor:
    """Return worse + scale * (better - worse) in the first channels of `(B, C, ...)`; the others stay the better's."""
    guided = better.clone()
    chosen = (slice(None), slice(channels))
    guided[chosen] = worse[chosen] + scale * (better[chosen] - worse[chosen])
    return guided


class Guided:
    """A net that extrapolates from a worse output of its own to its output for the condition.

    The worse one is that for the null condition (classifier-free guidance; Ho and Salimans, 2022), or that of an early
    exit, which is there without another evaluation (internal guidance; Zhou et al., 2025). The result is a net itself,
    whatever is predicted.
    """

    def __init__(
        self, net: Net, null: Tensor | None, guidance: GuidanceConfig, horizon: float, steps: float = math.inf
    ) -> None:
        """Guide `net` away from its own output for the null condition, or of its early exit.

        Args:
            net: the network to guide.
            null: the null condition `(B, ...)`; None: away from the early exit, the second half of the outputs.
            guidance: scale, interval, ramp and channels.
            horizon: times run from 0 to this.
            steps: steps of sampling.
        """
        self.net, self.null, self.guidance, self.horizon, self.steps = net, null, guidance, horizon, steps

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        """Evaluate at `x` `(B, *S)` and one common time `t` `(B,)`, or two `(B, 2)`."""
        scale = self.scale(float(t.flatten()[0]))
        if scale == 1:
            return self.net(x, t, cond)
        if self.null is None:
            better, worse = self.net(x, t, cond).chunk(2, dim=1)
        else:
            assert cond is not None
            both = self.net(torch.cat([x, x]), torch.cat([t, t]), torch.cat([cond, self.null]))
            better, worse = both.chunk(2)
        # The prediction is the first head of `(B, outputs, *S)`; a variance stays the better output's.
        guided = better.clone()
        guided[:, 0] = extrapolate(better[:, 0], worse[:, 0], scale, self.guidance.channels)
        return guided

    def scale(self, time: float) -> float:
        """Return the scale of guidance at a time in [0, horizon]."""
        return scale_at(self.guidance, time, self.horizon, self.steps)


class Autoguided(ProcessWrapper):
    """A process whose estimates lean away from those of a weaker model (autoguidance, Karras et al., NeurIPS 2024).

    The weaker model may predict something else, on another schedule: it sees the data at its own level of the same
    ratio of signal to noise, scaled as in its training, and its output is read through its own process. What is
    extrapolated is the estimate of clean data, which means the same in both.
    """

    def __init__(
        self, process: Process[Any], weak: Process[Any], weak_net: Net, guidance: GuidanceConfig, steps: float
    ) -> None:
        """Guide `process` away from a weaker model.

        Args:
            process: that of the model to guide.
            weak: that of the weaker model.
            weak_net: its network.
            guidance: scale, interval, ramp and channels.
            steps: steps of sampling.
        """
        super().__init__(process)
        self.weak, self.weak_net, self.guidance, self.steps = weak, weak_net, guidance, steps

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Any:
        """Evaluate both networks on `x` `(B, *S)` at a level."""
        better = self.process.predict(net, x, level, cond)
        scale = scale_at(self.guidance, level.t, self.horizon, self.steps)
        if scale == 1:
            return better
        weak_level = self.weak.matching(level)
        if not isinstance(better, Prediction):  # logits of tokens
            worse = self.weak.predict(self.weak_net, x, weak_level, cond)
            return extrapolate(better, worse, scale, self.guidance.channels)
        # Equal ratios of signal to noise leave a factor between the two scales of the data.
        factor = math.hypot(weak_level.alpha, weak_level.sigma) / math.hypot(level.alpha, level.sigma)
        worse = self.weak.predict(self.weak_net, factor * x, weak_level, cond)
        x0 = extrapolate(better.x0, worse.x0, scale, self.guidance.channels)
        return better._replace(x0=x0, eps=(x - level.alpha * x0) / level.sigma)


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
