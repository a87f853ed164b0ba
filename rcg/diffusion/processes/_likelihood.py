"""Divergences between Gaussians and likelihoods of pixels, in nats and element by element."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF_BIN = 1 / 255
"""Half the distance of two neighboring 8-bit values on the scale [-1, 1]."""


def gaussian_kl(difference: Tensor, log_variance: Tensor, other_log_variance: Tensor) -> Tensor:
    """Return KL(N(m, v) || N(m', v')) where `difference` is m - m'; arguments broadcast."""
    ratio = log_variance - other_log_variance
    return 0.5 * (ratio.exp() - ratio - 1 + difference.square() * (-other_log_variance).exp())


def discrete_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the log-probability of 8-bit values `x`, scaled to [-1, 1], under a Gaussian (Ho et al., 2020, eq. 13).

    The outermost bins reach to infinity.
    """
    centered, precision = x - mean, (-0.5 * log_variance).exp()
    above, below = (_normal_cdf(precision * (centered + shift)) for shift in (HALF_BIN, -HALF_BIN))
    probability = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return probability.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """Approximate the standard normal distribution function by a tanh, as the published code does."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
