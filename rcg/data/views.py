"""Tensors of a data set, several views of each image, read from where they lie: mapped files or memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class ShardedViews:
    """`(N, V, *S)` tensors of N images in V views, kept in shards and transformed as they are read.

    Shards that come from files stay in the files: only the rows asked for are read.
    """

    def __init__(self, shards: Sequence[Tensor], transform: Callable[[Tensor], Tensor] | None = None) -> None:
        """Serve `shards` `(n, V, *S)`, all but the last of equal length, through `transform` `(B, *S) -> (B, *S')`."""
        self._shards, self._transform = list(shards), transform
        self._length = len(self._shards[0])

    def __len__(self) -> int:
        """Return the number of images."""
        return self._length * (len(self._shards) - 1) + len(self._shards[-1])

    @property
    def views(self) -> int:
        """V, the number of views of each image."""
        return self._shards[0].shape[1]

    def rows(self, positions: Sequence[int] | Tensor, views: Sequence[int] | Tensor) -> Tensor:
        """Return view `views[i]` of image `positions[i]` for each i, `(B, *S')`."""
        positions, views = torch.as_tensor(positions), torch.as_tensor(views)
        rows = self._shards[0].new_empty(len(positions), *self._shards[0].shape[2:])
        shards = positions // self._length
        for shard in shards.unique().tolist():
            here = shards == shard
            rows[here] = self._shards[shard][positions[here] % self._length, views[here]]
        return rows if self._transform is None else self._transform(rows)

    def map(self, transform: Callable[[Tensor], Tensor]) -> ShardedViews:
        """Return the same tensors with `transform` applied after those before."""
        before = self._transform
        return ShardedViews(self._shards, transform if before is None else lambda rows: transform(before(rows)))
