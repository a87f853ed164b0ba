"""Unsupervised local edits: the changes of z that change a region of the image most.

They are the leading right singular vectors of the Jacobian of the estimate of clean data, inside a mask, with respect
to z. Park et al. (NeurIPS 2023) use those with respect to x_t or h; a representation has far fewer dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEP = 1e-2
"""Length of the finite difference that stands in for a Jacobian-vector product, relative to sqrt(D)."""


def local_directions(
    estimate: Callable[[Tensor], Tensor], z: Tensor, region: Tensor, count: int, iterations: int = 5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Find the directions of z that change a region most, by power iterations on J^T J.

    Fused attention has no forward derivatives: J v is a central finite difference, J^T u a gradient.

    Args:
        estimate: maps z `(B, D)` to clean data `(B, *S)`, sample by sample, at a fixed x_t and time.
        z: the representation `(D,)` where the map is linearized.
        region: weights `(*S)` or broadcastable, 1 inside the region and 0 outside.
        count: how many directions.
        iterations: of the power method.
        seed: of its start.

    Returns:
        Orthonormal directions `(count, D)`, strongest first, and their singular values `(count,)`.
    """
    step = STEP * z.numel() ** 0.5
    start = torch.randn(z.numel(), count, generator=torch.Generator().manual_seed(seed)).to(z)
    directions = torch.linalg.qr(start).Q.T
    for _ in range(iterations):
        gradients = _pull_back(estimate, z, region * _push_forward(estimate, z, region, directions, step))
        directions = torch.linalg.qr(gradients.T).Q.T
    changes = _push_forward(estimate, z, region, directions, step)
    # Inside the subspace found, singular vectors are those of a small matrix.
    rotation, values, _ = torch.linalg.svd(changes.flatten(1), full_matrices=False)
    return rotation.T @ directions, values


def _push_forward(
    estimate: Callable[[Tensor], Tensor], z: Tensor, region: Tensor, directions: Tensor, step: float
) -> Tensor:
    """Return the change J v inside the region for each of `directions` `(K, D)`, `(K, *S)`."""
    with torch.no_grad():
        ahead, behind = (estimate(z + sign * step * directions) for sign in (1, -1))
    return region * (ahead - behind) / (2 * step)


def _pull_back(estimate: Callable[[Tensor], Tensor], z: Tensor, changes: Tensor) -> Tensor:
    """Return J^T u for each u of `changes` `(K, *S)`, `(K, D)`."""
    copies = z.expand(len(changes), -1).detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad((estimate(copies) * changes).sum(), copies)
    return gradient
