"""Fidelity of reconstructions (PSNR, SSIM), and usage of a codebook."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB `(B,)` of images `(B, C, H, W)` in [0, 1]: -10 log10 MSE."""
    return -10 * (a - b).square().mean((1, 2, 3)).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity `(B,)` of images `(B, C, H, W)` in [0, 1] (Wang et al., 2004, eq. 13).

    Windows are Gaussian, 11 px wide with a std of 1.5 px, as published; smaller images get smaller windows.
    """
    size = min(11, a.shape[-1] - (a.shape[-1] + 1) % 2)
    offsets = torch.arange(size) - (size - 1) / 2
    window = (-0.5 * (offsets / 1.5).square()).exp()
    window = (window / window.sum()).to(a)
    channels = a.shape[1]
    kernel = torch.outer(window, window).expand(channels, 1, size, size)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, groups=channels)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a.square(), mean(b * b) - mean_b.square()
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean((1, 2, 3))


def code_usage(counts: Tensor) -> float:
    """Return the share of codes that occur at all, given the number of occurrences of each code `(K,)`."""
    return float((counts > 0).double().mean())


def perplexity(counts: Tensor) -> float:
    """Return exp of the entropy of the code frequencies, given the number of occurrences `(K,)`; K if all are equal."""
    return float(torch.special.entr(counts.double() / counts.sum()).sum().exp())
