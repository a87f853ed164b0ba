"""Clusters of representations as labels that nobody gave: k-means (Lloyd, 1982), in mini-batches (Sculley, 2010)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from rcg.core import checkpoint
from rcg.core.contracts import Space

FITTED = 200_000
"""Most representations that the centers are fitted to."""
ROWS = 8192
"""Representations that are compared with the centers at a time."""
GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, cover [0, 1) evenly however many there are (Weyl, 1916)."""


class Clusters(NamedTuple):
    """Centers `(K, D)`, and the nearest of them `(N,)` for each representation that they were fitted to."""

    centers: Tensor
    labels: Tensor

    @property
    def space(self) -> Space:
        """The space of the labels."""
        return Space((), vocab=len(self.centers), id=f"clusters:{checkpoint.digest({'centers': self.centers})}")

    @property
    def counts(self) -> list[int]:
        """How many representations each cluster has."""
        return self.labels.bincount(minlength=len(self.centers)).tolist()


def suitable(images: int, classes: int) -> int:
    """Return how many clusters so many images have where nobody says: ten for each class, or 100, of 50 images or more.

    Clusters finer than classes say more than classes do; too fine ones leave too few images to learn from.
    """
    return max(2, min(10 * classes or 100, images // 50))


def kept(
    z: Callable[[], Tensor], number: int, seed: int, facts: dict[str, Any], path: Path, accelerator: Accelerator
) -> Clusters:
    """Return the clusters of representations `(N, D)`, from `path` where they are there already.

    Args:
        z: gives the representations.
        number: how many clusters.
        seed: where k-means starts.
        facts: whose representations of which images they are, for the file.
        path: the file, written by the first process.
        accelerator: the processes; all of them get the result.
    """
    if accelerator.is_main_process and not path.is_file():
        found = fit(z(), number, seed)
        checkpoint.save_tensors(path, found._asdict(), facts)
    accelerator.wait_for_everyone()
    return Clusters(**checkpoint.load(path).tensors)


def fit(z: Tensor, number: int, seed: int) -> Clusters:
    """Find so many clusters of representations `(N, D)`, at most N."""
    chosen = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))[:FITTED]
    means = MiniBatchKMeans(number, batch_size=4096, n_init=3, random_state=seed % 2**32).fit(z[chosen].numpy())
    centers = torch.from_numpy(means.cluster_centers_).float()
    return Clusters(centers, assign(z, centers))


def assign(z: Tensor, centers: Tensor) -> Tensor:
    """Return the nearest of the centers `(K, D)` to each of `z` `(N, D)`, int64 `(N,)`."""
    return torch.cat([torch.cdist(rows, centers).argmin(1) for rows in z.split(ROWS)])


def deal(counts: Sequence[int], share: float) -> int:
    """Return the cluster at a share in [0, 1) of all representations, clusters of `counts` in a row."""
    ends = list(accumulate(counts))
    return bisect_right(ends, min(int(share * ends[-1]), ends[-1] - 1))
