"""Pseudo-labels from clusters of representations: k-means (Lloyd, 1982), in mini-batches (Sculley, 2010)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rcg.core import checkpoint
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.pretrained import misfits

MAX_FITTED = 200_000
"""Most representations that the centers are fitted to."""
ROWS = 8192
"""Representations that are compared with the centers at a time."""
GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, cover [0, 1) evenly however many there are (Weyl, 1916)."""


class Clusters(NamedTuple):
    """Centers `(K, D)`, and the number of the nearest of them `(N, V)` to each of N images in V views."""

    centers: Tensor
    labels: Tensor

    @property
    def space(self) -> Space:
        """The space of the labels."""
        return Space((), vocab=len(self.centers), id=f"clusters:{checkpoint.digest({'centers': self.centers})}")

    @property
    def counts(self) -> list[int]:
        """How many views each cluster has."""
        return self.labels.flatten().bincount(minlength=len(self.centers)).tolist()

    def nearest(self, z: Tensor) -> Tensor:
        """Return the cluster of each of `z` `(M, D)`, int64 `(M,)`."""
        return assign(z, self.centers)


def load(path: Path, centers: tuple[int, int], labels: tuple[int, int]) -> Clusters:
    """Read clusters of shapes `(K, D)` and `(N, V)` from their file.

    Raises:
        UserError: it holds something else.
    """
    tensors, _ = checkpoint.load_tensors(path)
    expected = {"centers": torch.empty(centers, device="meta")}
    expected["labels"] = torch.empty(labels, dtype=torch.int64, device="meta")
    complaints = misfits(expected, tensors, exact=True)
    if not complaints and not ((tensors["labels"] >= 0) & (tensors["labels"] < centers[0])).all():
        complaints = f"labels are not all from 0 to {centers[0] - 1}"
    if complaints:
        raise UserError(f"{path} holds no {centers[0]} clusters of these images: {complaints}; delete it")
    return Clusters(**tensors)


def default_number(images: int, classes: int) -> int:
    """Return the default number of clusters: ten for each class, or 100 without classes, of 50 images or more each.

    Clusters finer than classes carry more information; too fine ones leave too few images to learn from.
    """
    return max(2, min(10 * classes or 100, images // 50))


def fit(views: Iterable[Tensor], number: int, seed: int) -> Clusters:
    """Find so many clusters of N images, at most N.

    Args:
        views: representations `(N, D)` of each view; centers are fitted to the first, and all are labeled.
        number: of clusters.
        seed: of the search.
    """
    remaining = iter(views)
    z = next(remaining)
    chosen = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))[:MAX_FITTED]
    from sklearn.cluster import MiniBatchKMeans  # slow to import, and rarely needed

    means = MiniBatchKMeans(number, batch_size=4096, n_init=3, random_state=seed % 2**32).fit(z[chosen].numpy())
    centers = torch.from_numpy(means.cluster_centers_).float()
    return Clusters(centers, torch.stack([assign(view, centers) for view in chain([z], remaining)], dim=1))


def assign(z: Tensor, centers: Tensor) -> Tensor:
    """Return the nearest of the centers `(K, D)` to each of `z` `(N, D)`, int64 `(N,)`."""
    return torch.cat([torch.cdist(rows, centers).argmin(1) for rows in z.split(ROWS)])


def cluster_at(counts: Sequence[int], share: float) -> int:
    """Return the cluster at a share in [0, 1) of all representations, clusters of `counts` in a row."""
    ends = list(accumulate(counts))
    return bisect_right(ends, min(int(share * ends[-1]), ends[-1] - 1))
