"""The Frechet distance of Gaussians fitted to two sets of vectors (Dowson and Landau, 1982; Heusel et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FittedGaussian:
    """Mean and covariance R^T R of a set of vectors, float64.

    The factor is stored instead of the covariance: it is never squared and rooted again, so that sets of fewer vectors
    than dimensions are exact too.

    Attributes:
        count: number of vectors.
        mean: `(D,)`.
        factor: R `(K, D)`.
    """

    count: int
    mean: Tensor
    factor: Tensor

    @classmethod
    def fit(cls, x: Tensor) -> FittedGaussian:
        """Fit to vectors `(N, D)`; R is the triangular factor of the centered vectors over sqrt(N - 1)."""
        x = x.detach().double()
        mean = x.mean(0)
        return cls(len(x), mean, torch.linalg.qr(x - mean, mode="r").R / max(len(x) - 1, 1) ** 0.5)

    @classmethod
    def of_moments(cls, mean: Tensor, covariance: Tensor, count: int = 0) -> FittedGaussian:
        """Take a published mean `(D,)` and covariance `(D, D)`."""
        values, vectors = torch.linalg.eigh(covariance.double())
        return cls(count, mean.double(), values.clamp(min=0).sqrt()[:, None] * vectors.T)

    def merge(self, other: FittedGaussian) -> FittedGaussian:
        """Return the Gaussian of the union of both sets of vectors, as if it had been fitted to all at once."""
        count = self.count + other.count
        mean = (self.count * self.mean + other.count * other.mean) / count
        between = (self.count * other.count / count) ** 0.5 * (self.mean - other.mean)
        within = [g.factor * max(g.count - 1, 0) ** 0.5 for g in (self, other)]
        factor = torch.linalg.qr(torch.cat([*within, between[None]]), mode="r").R  # R^T R = x^T x
        return FittedGaussian(count, mean, factor / (count - 1) ** 0.5)

    def distance(self, other: FittedGaussian) -> float:
        """Return the squared Frechet distance |m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2).

        The trace of the root is the sum of the singular values of R_a R_b^T.
        """
        trace_root = torch.linalg.svdvals(self.factor @ other.factor.T).sum()
        traces = self.factor.square().sum() + other.factor.square().sum()
        return float(((self.mean - other.mean).square().sum() + traces - 2 * trace_root).clamp(min=0))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the squared Frechet distance of `a` `(N, D)` and `b` `(M, D)`.

    Small sets bias the distance upwards: compare sets of equal sizes, and report a reference distance (`halves`).
    """
    return FittedGaussian.fit(a.cpu()).distance(FittedGaussian.fit(b.cpu()))


def unbiased_distance(x: Tensor, real: Tensor, reference: FittedGaussian) -> float:
    """Estimate the distance to `reference` of what `x` `(N, D)` was drawn from, as of infinitely many draws.

    The distances of n = N, N/2 and N/4 vectors are extrapolated, as in FID-infinity (Chong and Forsyth, CVPR 2020).
    There they are on a line in 1/n, which holds from several times D vectors on. Here they are on a line in the
    distance of n `real` vectors to the same reference: of many vectors that is proportional to 1/n too, and of fewer
    than D it lacks the same directions. Where it is 0, so is the bias. The estimate may be negative.

    Args:
        x: N vectors, 4 or more.
        real: `(M, D)`, at least N vectors that were drawn as those of the reference were, but are not among them.
        reference: what both are compared with.
    """
    sizes = [len(x) // parts for parts in (1, 2, 4)]
    return intercept(*([_mean_distance(vectors, size, reference) for size in sizes] for vectors in (real, x)))


def intercept(x: Sequence[float], y: Sequence[float]) -> float:
    """Return a of the line y = a + b x through points, by least squares."""
    design = torch.tensor([[1.0, value] for value in x], dtype=torch.float64)
    return float(torch.linalg.lstsq(design, torch.tensor(y, dtype=torch.float64)[:, None]).solution[0])


def _mean_distance(x: Tensor, size: int, reference: FittedGaussian) -> float:
    """Return the mean distance to `reference` of disjoint parts of `x`, `size` vectors each."""
    parts = x.split(size)[: len(x) // size]
    return sum(FittedGaussian.fit(part).distance(reference) for part in parts) / len(parts)


def few_for(distance: str, width: int) -> str:
    """Say that a distance is of too few vectors of `width` numbers."""
    return (
        f"{distance} is of too few for {width} features: the covariance is singular and the distance far too high; "
        f"compare it only with others of as many"
    )


def halves(count: int, limit: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw two disjoint sets of positions below `count`, equally many, at most `limit` each, int64.

    The Frechet distance of the vectors there is the reference distance: a perfect generator reaches it on average.
    """
    size = min(count // 2, limit)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:size], order[size : 2 * size]
