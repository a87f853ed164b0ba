"""A Gaussian whose ideal denoiser is known, and sources of noise: what samplers are tested with."""

import torch

from rcg.core.contracts import Space
from rcg.core.registry import SAMPLERS

MEAN, STD = 0.7, 0.4
SPACE = Space((4,))
CONTINUOUS = [name for name in SAMPLERS.names() if not SAMPLERS.get(name).discrete]
"""Samplers of real numbers."""
DISCRETE = [name for name in SAMPLERS.names() if SAMPLERS.get(name).discrete]
"""Samplers of tokens."""


class RecordedNoise:
    """A noise source that repeats given draws."""

    def __init__(self, draws):
        self.draws = iter(draws)

    def normal(self, shape):
        return next(self.draws)


class BatchNoise:
    """One stream for a whole batch: quick, for statistics."""

    def __init__(self, batch):
        self.batch, self.generator = batch, torch.Generator().manual_seed(0)

    def normal(self, shape):
        return torch.randn(self.batch, *shape, generator=self.generator)

    def uniform(self, shape):
        return torch.rand(self.batch, *shape, generator=self.generator)


def ideal(process):
    """The exact answer of the network when data is N(MEAN, STD^2): E[x0 | x_t] in the process's parameterization."""

    def net(x, t, cond):
        alpha, sigma = (scale[:, None] for scale in process.scales(t))
        x0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        eps = (x - alpha * x0) / sigma
        outputs = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "velocity": eps - x0}
        return outputs[process.predicts][:, None]

    return net


def smooth(x, t, cond):
    """Any smooth function of x and t will do as a network."""
    return (torch.tanh(x + t[:, None] / 700) * 0.8)[:, None]
