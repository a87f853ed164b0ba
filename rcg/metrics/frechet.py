"""The Frechet distance of Gaussians fitted to two sets of vectors (Dowson and Landau, 1982; Heusel et al., 2017)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the squared Frechet distance of `a` `(N, D)` and `b` `(M, D)`: |m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2).

    The trace of the root is taken through the symmetric A^1/2 B A^1/2, whose eigenvalues are real and not negative,
    in float64. Small sets bias the distance upwards: compare sets of equal sizes, and with a floor.
    """
    x, y = (v.detach().cpu().double().numpy() for v in (a, b))
    cov_x, cov_y = (np.atleast_2d(np.cov(v, rowvar=False)) for v in (x, y))
    values, vectors = np.linalg.eigh(cov_x)
    root_x = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    trace_root = np.sqrt(np.linalg.eigvalsh(root_x @ cov_y @ root_x).clip(0)).sum()
    means = np.square(x.mean(0) - y.mean(0)).sum()
    return float(max(means + np.trace(cov_x) + np.trace(cov_y) - 2 * trace_root, 0.0))


def halves(vectors: Tensor, limit: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split `vectors` `(N, D)` at random into two disjoint sets of equal size, at most `limit` each.

    Their Frechet distance is the floor that a perfect generator of these vectors would reach on average.
    """
    size = min(len(vectors) // 2, limit)
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    return vectors[order[:size]], vectors[order[size : 2 * size]]
