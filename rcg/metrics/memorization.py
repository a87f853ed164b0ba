"""Memorization: are samples copies of training images? Validation images are the baseline."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg.metrics.manifold import nearest_neighbors

PIXELS_SIDE = 32
"""Largest side at which pixels are compared."""


class Memorization(NamedTuple):
    """Distances of M samples to their nearest training images.

    Samples of a generator that does not memorize are as far from the training images as validation images are: about
    1 % of them are `copies`, and `ratio` is about 1.

    Attributes:
        copies: `(M,)`, 1 where a sample is closer to a training image than the closest 1 % of validation images.
        ratio: median distance of samples to their nearest training image, over that of validation images.
        nearest: positions of the nearest training images `(M, k)`.
        distances: their distances `(M, k)`.
    """

    copies: Tensor
    ratio: float
    nearest: Tensor
    distances: Tensor


def pixel_features(images: Tensor) -> Tensor:
    """Return images `(B, 3, S, S)`, bytes, as vectors of bytes `(B, D)`; large ones are averaged down."""
    small = F.adaptive_avg_pool2d(images.float(), pixels_side(images.shape[-1]))
    return small.round().to(torch.uint8).flatten(1)


def pixels_side(size: int) -> int:
    """Return the side at which images of `size` pixels are compared."""
    return min(size, PIXELS_SIDE)


def memorization(samples: Tensor, train: Tensor, validation: Tensor, k: int = 4) -> Memorization:
    """Compare `samples` `(M, D)` with `train` `(N, D)`, calibrated by `validation` `(H, D)` of the same space."""
    distances, nearest = _exact_neighbors(samples, train, min(k, len(train)))
    baseline = _exact_neighbors(validation, train, 1)[0][:, 0]
    copies = (distances[:, 0] < torch.quantile(baseline, 0.01)).float()
    return Memorization(copies, float(distances[:, 0].median() / baseline.median()), nearest, distances)


def _exact_neighbors(queries: Tensor, others: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return exact distances and positions: the search's matrix products are noise where images are nearly equal."""
    positions = nearest_neighbors(queries, others, k)[1]
    rows = [(query.float() - others[near].float()).norm(dim=1) for query, near in zip(queries, positions, strict=True)]
    return torch.stack(rows), positions
