"""Nearest neighbors by distance, and the metrics built on them: precision, recall, density, coverage.

`in_manifold`, `density` and `coverage` return one value per vector; their mean is the metric, and the bootstrap of the
values its std.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PART = 1000
"""Number of vectors whose distances to all others are in memory at once."""


class PrecisionRecall(NamedTuple):
    """Share of generated vectors in the manifold of real ones, and of real ones in the manifold of generated ones."""

    precision: float
    recall: float


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> PrecisionRecall | None:
    """Compare `real` `(N, D)` and `generated` `(M, D)` (Kynkäänniemi et al., NeurIPS 2019).

    None for sets of at most k vectors: these have no k-th neighbor.
    """
    if min(len(real), len(generated)) <= k:
        return None
    precision = in_manifold(generated, real, k).mean()
    recall = in_manifold(real, generated, k).mean()
    return PrecisionRecall(float(precision), float(recall))


def in_manifold(queries: Tensor, others: Tensor, k: int = 3) -> Tensor:
    """Return 1 for each of `queries` `(M, D)` in the manifold of `others` `(N, D)`, else 0, `(M,)`.

    A query is in the manifold if it is no farther from one of `others` than that one's k-th neighbor (eq. 1 and 2).
    """
    radii = _radii(others, k)
    return torch.cat([(torch.cdist(part, others) <= radii).any(1) for part in queries.split(PART)]).float()


def density(generated: Tensor, real: Tensor, k: int = 5) -> Tensor:
    """Return for each of `generated` `(M, D)` the number of balls around `real` `(N, D)` it lies in, over k, `(M,)`.

    A ball reaches to the k-th neighbor of its center; the mean is the density (Naeem et al., ICML 2020, eq. 3).
    """
    radii = _radii(real, k)
    return torch.cat([(torch.cdist(part, real) <= radii).sum(1) / k for part in generated.split(PART)])


def coverage(real: Tensor, generated: Tensor, k: int = 5) -> Tensor:
    """Return 1 for each of `real` `(N, D)` whose ball contains one of `generated` `(M, D)`, else 0, `(N,)` (eq. 4)."""
    return (nearest_distance(real, generated) <= _radii(real, k)).float()


def nearest_distance(queries: Tensor, others: Tensor, skip: int = 0) -> Tensor:
    """Return the distance `(M,)` of each of `queries` `(M, D)` to its nearest of `others` `(N, D)`, `skip` left out."""
    return nearest_neighbors(queries, others, skip + 1)[0][:, -1]


def nearest_neighbors(queries: Tensor, others: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the `k` nearest of `others` `(N, D)` to each of `queries` `(M, D)`: their distances and positions `(M, k)`.

    Vectors may be bytes, which are widened part by part.
    """
    parts = [_search(part.float() if part.dtype == torch.uint8 else part, others, k) for part in queries.split(PART)]
    distances, positions = zip(*parts, strict=True)
    return torch.cat(distances), torch.cat(positions)


def _search(queries: Tensor, others: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Search `others` in parts, so that millions of them need no more memory than their own."""
    distances, positions = [], []
    for start in range(0, len(others), 50 * PART):
        part = others[start : start + 50 * PART].to(queries.dtype)
        candidates = torch.cdist(queries, part).topk(min(k, len(part)), largest=False)
        distances.append(candidates.values)
        positions.append(candidates.indices + start)
    nearest = torch.cat(distances, 1).topk(k, largest=False)
    return nearest.values, torch.cat(positions, 1).gather(1, nearest.indices)


def _radii(x: Tensor, k: int) -> Tensor:
    """Return the distance `(N,)` of each of `x` `(N, D)` to its k-th neighbor; the vector itself is skipped."""
    return nearest_distance(x, x, skip=k)
