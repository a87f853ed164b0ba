"""Representation alignment (REPA; Yu et al., ICLR 2025): a generator's inner tokens learn an encoder's patches."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import AlignConfig
from rcg.core.contracts import Space


class Alignment(nn.Module):
    """A projection of inner tokens and its distance from an encoder's patch tokens; training needs it, sampling not."""

    def __init__(self, config: AlignConfig, width: int, patches: Space) -> None:
        """Project tokens of `width` into `patches`, a space `(rows, columns, D)`."""
        super().__init__()
        self.weight = config.weight
        self.rows, self.columns, dim = patches.shape
        self.project = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, dim),
        )

    def forward(self, inner: Tensor, patches: Tensor) -> Tensor:
        """Return the weighted mean of -cos(projected, patch) over all patches (their eq. 8).

        Args:
            inner: tokens `(B, N, width)` of a square grid.
            patches: the encoder's `(B, rows * columns, D)`, resampled where the grids differ.
        """
        target = self._resample(patches, math.isqrt(inner.shape[1]))
        cosine = F.cosine_similarity(self.project(inner).float(), target.float(), dim=-1)
        return -self.weight * cosine.mean()

    def _resample(self, patches: Tensor, side: int) -> Tensor:
        if (self.rows, self.columns) == (side, side):
            return patches
        maps = patches.transpose(1, 2).unflatten(2, (self.rows, self.columns))
        maps = F.interpolate(maps.float(), (side, side), mode="bilinear", antialias=True)
        return maps.flatten(2).transpose(1, 2)
