"""Representation alignment (REPA; Yu et al., ICLR 2025): hidden tokens or latents learn an encoder's patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import AlignConfig, LatentAlignConfig
from rcg.core.contracts import Space
from rcg.diffusion.estimate_loss import EstimateLoss
from rcg.diffusion.model import GenerativeModel


class AlignmentHead(nn.Module):
    """A projection of hidden tokens, and its distance from an encoder's patch tokens; only training needs it."""

    def __init__(self, config: AlignConfig | LatentAlignConfig, width: int, patches: Space) -> None:
        """Project tokens of `width` into `patches`, a space `(rows, columns, D)`."""
        super().__init__()
        self.weight = config.weight
        self.rows, self.columns, dim = patches.shape
        if config.hidden is None:
            self.project: nn.Module = nn.Linear(width, dim)
            return
        self.project = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, dim),
        )

    def forward(self, hidden: Tensor, patches: Tensor) -> Tensor:
        """Return the weighted mean of -cos(projected, patch) over all patches (their eq. 8).

        Args:
            hidden: tokens `(B, N, width)` of a square grid.
            patches: the encoder's `(B, rows * columns, D)`, resampled where the grids differ.
        """
        target = self._resample(patches, math.isqrt(hidden.shape[1]))
        cosine = F.cosine_similarity(self.project(hidden).float(), target.float(), dim=-1)
        return -self.weight * cosine.mean()

    def _resample(self, patches: Tensor, side: int) -> Tensor:
        if (self.rows, self.columns) == (side, side):
            return patches
        maps = patches.transpose(1, 2).unflatten(2, (self.rows, self.columns))
        maps = F.interpolate(maps.float(), (side, side), mode="bilinear", antialias=True)
        return maps.flatten(2).transpose(1, 2)


class AlignedModel(nn.Module):
    """A generative model and the heads that align its depths, trained as one module; only the model is exported."""

    def __init__(self, model: GenerativeModel, config: AlignConfig, patches: Space) -> None:
        """Align the network of `model`, which can be aligned, with `patches`, a space `(rows, columns, D)`."""
        super().__init__()
        self.model = model
        self.heads = nn.ModuleList(AlignmentHead(config, width, patches) for width in model.network.feature_widths)

    def forward(
        self, x: Tensor, cond: Tensor | None, patches: Tensor, estimate_loss: EstimateLoss | None = None
    ) -> dict[str, Tensor]:
        """Return the model's losses of data `x` `(B, *S)` given `cond`, and `align`, the mean over all depths.

        `patches` `(B, N, D)` are the frozen encoder's patch tokens of the same images.
        """
        losses: dict[str, Tensor] = self.model(x, cond, estimate_loss)
        # The last evaluation is the one with gradients: self-conditioning makes an estimate first.
        pairs = zip(self.heads, self.model.network.take_features(), strict=True)
        return {**losses, "align": torch.stack([head(tokens, patches) for head, tokens in pairs]).mean()}
