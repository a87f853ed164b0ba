"""Features of representations without labels: each image has a few of many (a sparse autoencoder)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.core.errors import UserError
from rcg.core.rng import fold_seed

STEPS, BATCH, RATE = 2000, 256, 2e-3
"""Of the training, which takes seconds."""
HELD_OUT = 10
"""One of so many images is for validation."""


class SparseAutoencoder(nn.Module):
    """Writes z `(B, d)` as a center and a few features: z is about center + a W, most of a `(B, F)` is 0.

    The `active` largest coefficients of an image are kept, those that are positive (TopK, Gao et al., 2024, arXiv
    2406.04093, Section 2.3). The rows of W have length 1.
    """

    def __init__(self, center: Tensor, features: Tensor, active: int) -> None:
        """Start at a center `(d,)` and features `(F, d)`; `active` is the number of features of an image."""
        super().__init__()
        self.active = active
        self.center = nn.Parameter(center.clone())
        self.encoder = nn.Parameter(F.normalize(features))
        self.bias = nn.Parameter(torch.zeros(len(features)))
        self.decoder = nn.Parameter(F.normalize(features))

    @property
    def directions(self) -> Tensor:
        """W `(F, d)`."""
        return F.normalize(self.decoder)

    def encode(self, z: Tensor) -> Tensor:
        """Return the coefficients a `(B, F)` of z `(B, d)`."""
        scores = F.relu((z - self.center) @ self.encoder.T + self.bias)
        values, places = scores.topk(self.active, dim=1)
        return torch.zeros_like(scores).scatter(1, places, values)

    def forward(self, z: Tensor) -> Tensor:
        """Return what the features say of z `(B, d)`."""
        return self.center + self.encode(z) @ self.directions


@dataclass(frozen=True)
class Features:
    """The features that were found in images, those first that explain most.

    Attributes:
        directions: `(F, d)`, of length 1.
        coefficients: of each image, `(N, F)`; most are 0.
        explained: share of the variance of held-out images that is explained.
        dead: number of features that no image has; they are left out.
    """

    directions: Tensor
    coefficients: Tensor
    explained: float
    dead: int

    @property
    def shares(self) -> Tensor:
        """The share of images that have each feature, `(F,)`."""
        return (self.coefficients > 0).double().mean(0)

    @property
    def summary(self) -> str:
        """How good they are, in words."""
        active = float((self.coefficients > 0).double().sum(1).mean())
        return f"explained variance {self.explained:.3g}, {active:.3g} features per image, {self.dead} dead features"


def find_features(z: Tensor, count: int, active: int, seed: int = 0) -> Features:
    """Train a sparse autoencoder on representations, in seconds on a CPU.

    Args:
        z: `(N, d)`.
        count: number of features.
        active: number of features of an image, at most `count`.
        seed: of the images that the features start from, and of the batches.

    Raises:
        UserError: there are fewer images than features, or fewer features than an image may have.
    """
    if active > count:
        raise UserError(f"an image can have at most all {count} features, not {active}: ask for more features")
    if len(z) < max(count, 2 * HELD_OUT):
        raise UserError(
            f"{count} features need as many images, and at least {2 * HELD_OUT}, but there are {len(z)}: ask for fewer"
        )
    generator = torch.Generator().manual_seed(fold_seed(seed, "sparse autoencoder"))
    order = torch.randperm(len(z), generator=generator)
    held_out, seen = order[: len(z) // HELD_OUT], order[len(z) // HELD_OUT :]
    centered = z - z[seen].mean(0)
    scale = centered[seen].square().mean().sqrt()
    model = _train(centered[seen] / scale, count, active, generator)
    with torch.no_grad():
        coefficients = scale * model.encode(centered / scale)
        rest = centered[held_out] - scale * model(centered[held_out] / scale)
        explained = 1 - float(rest.square().sum() / centered[held_out].square().sum())
        order = coefficients.square().sum(0).argsort(descending=True, stable=True)
        order = order[(coefficients[:, order] > 0).any(0)]
        return Features(model.directions[order], coefficients[:, order], explained, count - len(order))


def _train(z: Tensor, count: int, active: int, generator: torch.Generator) -> SparseAutoencoder:
    """Train on `z` `(N, d)` of mean 0 and mean square 1; features start at images, so that none is far from all."""
    starts = torch.randint(len(z), (count,), generator=generator)
    with torch.enable_grad():
        model = SparseAutoencoder(z.mean(0), z[starts], active)
        optimizer = torch.optim.Adam(model.parameters(), RATE)
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - step / STEPS)
            batch = z[torch.randint(len(z), (BATCH,), generator=generator)]
            loss = F.mse_loss(model(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model
