"""Tensors of a data set, several views of each image, read from where they lie: mapped files or memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rcg.core.errors import UserError


class ShardedViews:
    """`(N, V, *S)` tensors of N images in V views, kept in shards and transformed as they are read.

    Shards that come from files stay in the files: only the rows asked for are read.
    """

    def __init__(
        self, shards: Sequence[Tensor], transform: Callable[[Tensor], Tensor] | None = None, origin: Path | None = None
    ) -> None:
        """Serve tensors.

        Args:
            shards: `(n, V, *S)`, all but the last of equal length.
            transform: `(B, *S) -> (B, *S')`, applied to what is read.
            origin: the folder that they were read from.
        """
        self._shards, self._transform, self._origin = list(shards), transform, origin
        self._length = len(self._shards[0])

    def __len__(self) -> int:
        """Return the number of images."""
        return self._length * (len(self._shards) - 1) + len(self._shards[-1])

    @property
    def views(self) -> int:
        """V, the number of views of each image."""
        return self._shards[0].shape[1]

    def rows(self, positions: Sequence[int] | Tensor, views: Sequence[int] | Tensor) -> Tensor:
        """Return view `views[i]` of image `positions[i]` for each i, `(B, *S')`.

        Raises:
            UserError: they are not finite.
        """
        positions, views = torch.as_tensor(positions), torch.as_tensor(views)
        rows = self._shards[0].new_empty(len(positions), *self._shards[0].shape[2:])
        shards = positions // self._length
        for shard in shards.unique().tolist():
            here = shards == shard
            rows[here] = self._shards[shard][positions[here] % self._length, views[here]]
        if not rows.isfinite().all():
            place = f" from {self._origin}, which has to be deleted," if self._origin else ""
            raise UserError(f"stored values{place} are not finite: the network that computed them was damaged")
        return rows if self._transform is None else self._transform(rows)

    def map(self, transform: Callable[[Tensor], Tensor]) -> ShardedViews:
        """Return the same tensors with `transform` applied after those before."""
        before = self._transform
        chain = transform if before is None else lambda rows: transform(before(rows))
        return ShardedViews(self._shards, chain, self._origin)
