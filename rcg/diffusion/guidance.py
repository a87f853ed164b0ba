"""Classifier guidance (Dhariwal and Nichol, 2021) by a linear probe: an unconditional model is steered to a class."""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from rcg.core.contracts import Level, Net, Prediction, Process


class Probe:
    """A linear classifier of representations, log p(y | z) = log softmax(z W^T + b)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Hold `weight` `(K, D)` and `bias` `(K,)`."""
        self.weight, self.bias = weight, bias

    @classmethod
    def fit(cls, z: Tensor, labels: Tensor) -> Probe:
        """Fit a logistic regression to representations `(N, D)` with labels `(N,)` of K > 2 classes."""
        found = LogisticRegression(C=0.1, max_iter=300).fit(z.numpy(), labels.numpy())
        return cls(torch.tensor(found.coef_).float(), torch.tensor(found.intercept_).float())

    def log_probability(self, z: Tensor) -> Tensor:
        """Return log p(y | z) `(B, K)`."""
        return F.log_softmax(z @ self.weight.to(z).T + self.bias.to(z), dim=1)


class Steered:
    """A process whose predictions lean towards the labels asked for.

    The score gains scale * grad log p(y | x_0(x_t)), the gradient taken through the network (their Algorithm 2:
    eps - sigma * gradient), so that every sampler can be steered.
    """

    def __init__(self, process: Process, probe: Probe, labels: Tensor, scale: float) -> None:
        """Steer `process` towards `labels` `(B,)` with strength `scale`."""
        self.process, self.probe, self.labels, self.scale = process, probe, labels, scale
        self.heads, self.horizon = process.heads, process.horizon

    def loss(self, net: Net, x: Tensor, cond: Tensor | None) -> dict[str, Tensor]:
        """Return the losses of the process itself."""
        return self.process.loss(net, x, cond)

    def levels(self, steps: int, spacing: str) -> list[Level]:
        """Return the levels of the process itself."""
        return self.process.levels(steps, spacing)

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Prediction:
        """Evaluate the network on `x` `(B, D)` and shift its estimate of the noise."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0, eps, variance = self.process.predict(net, x, level, cond)
            log_p = self.probe.log_probability(x0).gather(1, self.labels.to(x.device)[:, None])
            (gradient,) = torch.autograd.grad(log_p.sum(), x)
        x, x0, eps = x.detach(), x0.detach(), eps.detach() - self.scale * level.sigma * gradient
        # At pure noise the data cannot be solved for: the estimate stays.
        return Prediction((x - level.sigma * eps) / level.alpha if level.alpha > 0 else x0, eps, variance)
