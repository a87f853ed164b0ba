"""The Frechet distance of Gaussians fitted to two sets of vectors (Dowson and Landau, 1982; Heusel et al., 2017)."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the squared Frechet distance of `a` `(N, D)` and `b` `(M, D)`: |m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2).

    With centred data X, Y scaled by 1 / sqrt(n - 1), the trace of the root is the sum of the singular values of X Y^T,
    taken through the triangular factors of both in float64: nothing is squared and rooted again, so sets smaller than
    D are exact too. Small sets bias the distance upwards: compare sets of equal sizes, and with a floor.
    """
    x, y = (v.detach().cpu().double() for v in (a, b))
    factor_x, factor_y = (_factor(v) for v in (x, y))
    trace_root = torch.linalg.svdvals(factor_x @ factor_y.T).sum()
    means = (x.mean(0) - y.mean(0)).square().sum()
    return float((means + factor_x.square().sum() + factor_y.square().sum() - 2 * trace_root).clamp(min=0))


def _factor(x: Tensor) -> Tensor:
    """Return R with R^T R the covariance of `x` `(N, D)`."""
    return torch.linalg.qr((x - x.mean(0)) / (len(x) - 1) ** 0.5, mode="r").R


def halves(count: int, limit: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw two disjoint sets of positions below `count`, equally many, at most `limit` each, int64.

    The Frechet distance of the vectors there is the floor that a perfect generator would reach on average.
    """
    size = min(count // 2, limit)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:size], order[size : 2 * size]
