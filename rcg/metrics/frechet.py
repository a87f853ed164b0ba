"""The Frechet distance of Gaussians fitted to two sets of vectors (Dowson and Landau, 1982; Heusel et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of some vectors, float64; the covariance is R^T R.

    Nothing is squared and rooted again, so sets of fewer vectors than dimensions are exact too.
    """

    count: int
    mean: Tensor  # (D,)
    factor: Tensor  # R (K, D)

    @classmethod
    def fit(cls, x: Tensor) -> Gaussian:
        """Fit to vectors `(N, D)`; R is the triangular factor of the centerd vectors over sqrt(N - 1)."""
        x = x.detach().double()
        mean = x.mean(0)
        return cls(len(x), mean, _triangular(x - mean) / max(len(x) - 1, 1) ** 0.5)

    @classmethod
    def of_moments(cls, mean: Tensor, covariance: Tensor, count: int = 0) -> Gaussian:
        """Take over a published mean `(D,)` and covariance `(D, D)`."""
        values, vectors = torch.linalg.eigh(covariance.double())
        return cls(count, mean.double(), values.clamp(min=0).sqrt()[:, None] * vectors.T)

    def merge(self, other: Gaussian) -> Gaussian:
        """Return the Gaussian of both sets of vectors together, as if it had been fitted to all at once."""
        count = self.count + other.count
        apart = (self.count * other.count / count) ** 0.5 * (self.mean - other.mean)
        rows = [g.factor * max(g.count - 1, 0) ** 0.5 for g in (self, other)]
        factor = _triangular(torch.cat([*rows, apart[None]])) / (count - 1) ** 0.5
        return Gaussian(count, (self.count * self.mean + other.count * other.mean) / count, factor)

    def distance(self, other: Gaussian) -> float:
        """Return the squared Frechet distance |m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2).

        The trace of the root is the sum of the singular values of R_a R_b^T.
        """
        trace_root = torch.linalg.svdvals(self.factor @ other.factor.T).sum()
        traces = self.factor.square().sum() + other.factor.square().sum()
        return float(((self.mean - other.mean).square().sum() + traces - 2 * trace_root).clamp(min=0))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the squared Frechet distance of `a` `(N, D)` and `b` `(M, D)`.

    Small sets bias the distance upwards: compare sets of equal sizes, and with a floor.
    """
    return Gaussian.fit(a.cpu()).distance(Gaussian.fit(b.cpu()))


def _triangular(x: Tensor) -> Tensor:
    """Return R with R^T R = x^T x."""
    return torch.linalg.qr(x, mode="r").R


def halves(count: int, limit: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw two disjoint sets of positions below `count`, equally many, at most `limit` each, int64.

    The Frechet distance of the vectors there is the floor that a perfect generator would reach on average.
    """
    size = min(count // 2, limit)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:size], order[size : 2 * size]
