"""Precision, recall, density, coverage and novelty by nearest neighbors.

Each is a mean over vectors; what is averaged can be had too, so that the mean's deviation can be estimated.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PART = 1000
"""Vectors whose distances to all others are in memory at once."""


class PrecisionRecall(NamedTuple):
    """Share of generated vectors among real ones, and of real ones among generated."""

    precision: float
    recall: float


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> PrecisionRecall:
    """Compare `real` `(N, D)` and `generated` `(M, D)` (Kynkäänniemi et al., NeurIPS 2019)."""
    return PrecisionRecall(*(float(among(*pair, k).mean()) for pair in ((generated, real), (real, generated))))


def among(queries: Tensor, others: Tensor, k: int = 3) -> Tensor:
    """Return 1 for each of `queries` `(M, D)` that is among `others` `(N, D)`, else 0, `(M,)`.

    A vector is among others when it is no farther from one of them than that one's own k-th neighbor (eq. 1 and 2).
    """
    radii = _radii(others, k)
    return torch.cat([(torch.cdist(part, others) <= radii).any(1) for part in queries.split(PART)]).float()


def density(generated: Tensor, real: Tensor, k: int = 5) -> Tensor:
    """Return for each generated vector `(M, D)` in how many balls around `real` `(N, D)` it lies, over k, `(M,)`.

    A ball reaches to its center's k-th neighbor; the mean is the density (Naeem et al., ICML 2020, eq. 3).
    """
    radii = _radii(real, k)
    return torch.cat([(torch.cdist(part, real) <= radii).sum(1) / k for part in generated.split(PART)])


def coverage(real: Tensor, generated: Tensor, k: int = 5) -> Tensor:
    """Return 1 for each of `real` `(N, D)` whose ball holds any of `generated` `(M, D)`, else 0, `(N,)` (eq. 4)."""
    return (nearest_distance(real, generated) <= _radii(real, k)).float()


def nearest_distance(queries: Tensor, others: Tensor, skip: int = 0) -> Tensor:
    """Return the distance `(M,)` of each of `queries` `(M, D)` to the nearest of `others` `(N, D)`, `skip` left out."""
    return nearest_neighbors(queries, others, skip + 1)[0][:, -1]


def nearest_neighbors(queries: Tensor, others: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the distances `(M, k)` of each of `queries` `(M, D)` to its `k` nearest of `others` `(N, D)`, and which.

    Vectors may be bytes; they are widened part by part.
    """
    found = [_nearest(part.float() if part.dtype == torch.uint8 else part, others, k) for part in queries.split(PART)]
    distances, positions = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(positions)


def _nearest(queries: Tensor, others: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Search `others` in parts, so that millions of them need no more memory than they take themselves."""
    distances, positions = [], []
    for start in range(0, len(others), 50 * PART):
        part = others[start : start + 50 * PART].to(queries.dtype)
        near = torch.cdist(queries, part).topk(min(k, len(part)), largest=False)
        distances.append(near.values)
        positions.append(near.indices + start)
    nearest = torch.cat(distances, 1).topk(k, largest=False)
    return nearest.values, torch.cat(positions, 1).gather(1, nearest.indices)


def _radii(x: Tensor, k: int) -> Tensor:
    """Return the distance `(N,)` of each of `x` `(N, D)` to its k-th neighbor; each is its own nearest."""
    return nearest_distance(x, x, skip=k)
