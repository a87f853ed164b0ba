"""Precision, recall and novelty by nearest neighbours (Kynkäänniemi et al., NeurIPS 2019)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PrecisionRecall(NamedTuple):
    """Share of generated vectors among real ones, and of real ones among generated."""

    precision: float
    recall: float


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> PrecisionRecall:
    """Compare `real` `(N, D)` and `generated` `(M, D)`.

    A vector is among others when it is no farther from one of them than that one's own k-th neighbour (eq. 1 and 2).
    """
    return PrecisionRecall(_among(generated, real, k), _among(real, generated, k))


def nearest_distance(queries: Tensor, among: Tensor, skip: int = 0) -> Tensor:
    """Return the distance `(M,)` of each of `queries` `(M, D)` to the nearest of `among` `(N, D)`, `skip` left out."""
    k = skip + 1
    return torch.cat([torch.cdist(part, among).topk(k, largest=False).values[:, -1] for part in queries.split(1000)])


def _among(queries: Tensor, others: Tensor, k: int) -> float:
    radius = nearest_distance(others, others, skip=k)  # each is its own nearest
    inside = [(torch.cdist(part, others) <= radius).any(1) for part in queries.split(1000)]
    return float(torch.cat(inside).float().mean())
