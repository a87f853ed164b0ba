"""Whether samples are copies of training images, judged beside images that nobody trained on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rcg.metrics.manifold import nearest_neighbors


class Memorization(NamedTuple):
    """Samples beside the training set, and their nearest training images.

    Samples of a generator that has learned nothing by heart are as far from the training set as held-out images are:
    about 1 % of them `copies`, and the mean of `ratio` about 1.
    """

    copies: Tensor  # (M,), 1 where a sample is closer to a training image than the closest 1 % of held-out images
    ratio: float  # median distance of samples to their nearest training image, over that of held-out images
    nearest: Tensor  # (M, k) positions of training images
    distances: Tensor  # (M, k)


def memorization(samples: Tensor, train: Tensor, held_out: Tensor, k: int = 4) -> Memorization:
    """Compare `samples` `(M, D)` with `train` `(N, D)`, calibrated by `held_out` `(H, D)` of the same space."""
    distances, nearest = _nearest(samples, train, min(k, len(train)))
    usual = _nearest(held_out, train, 1)[0][:, 0]
    copies = (distances[:, 0] < torch.quantile(usual, 0.01)).float()
    return Memorization(copies, float(distances[:, 0].median() / usual.median()), nearest, distances)


def _nearest(queries: Tensor, others: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return exact distances: those of a search by matrix products are noise where images are nearly equal."""
    positions = nearest_neighbors(queries, others, k)[1]
    rows = [(query.float() - others[near].float()).norm(dim=1) for query, near in zip(queries, positions, strict=True)]
    return torch.stack(rows), positions
