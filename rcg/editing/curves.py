"""Curves between two points: straight lines for representations, great circles for noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Curve = Callable[[Tensor, Tensor, float], Tensor]
"""A curve from a to b `(B, *S)`: at share 0 it is at a, at share 1 at b."""


def lerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return the point at `share` in [0, 1] of the straight lines from `a` to `b` `(B, *S)`."""
    return torch.lerp(a, b, share)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return the point at `share` in [0, 1] of the great circles from `a` to `b` `(B, *S)` (Shoemake, 1985).

    Norms are interpolated between those of the ends, so that noise stays as large as noise is. Opposite ends have no
    great circle of their own: theirs is a straight line.
    """
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    norm_a, norm_b = (flat.norm(dim=1, keepdim=True).clamp(min=1e-12) for flat in (flat_a, flat_b))
    unit_a, unit_b = flat_a / norm_a, flat_b / norm_b
    angle = torch.acos((unit_a * unit_b).sum(1, keepdim=True).clamp(-1, 1))
    sine = torch.sin(angle)
    is_straight = sine < 1e-6
    sine = torch.where(is_straight, 1.0, sine)
    from_a = torch.where(is_straight, 1 - share, torch.sin((1 - share) * angle) / sine)
    from_b = torch.where(is_straight, share, torch.sin(share * angle) / sine)
    point = (from_a * unit_a + from_b * unit_b) * torch.lerp(norm_a, norm_b, share)
    return point.view_as(a).to(a.dtype)


def along(points: Tensor, curve: Curve, frames: int) -> Tensor:
    """Return `frames` points of each of the N - 1 curves from point to point of `points` `(N, *S)`, and the last point.

    Returns:
        `((N - 1) frames + 1, *S)`; the given points are at 0, `frames`, 2 `frames`, ...
    """
    starts, ends = points[:-1], points[1:]
    steps = torch.stack([curve(starts, ends, frame / frames) for frame in range(frames)], dim=1)
    return torch.cat([steps.flatten(0, 1), points[-1:]])


def path_length(distances: Sequence[float] | Tensor, frames: int) -> float:
    """Return the perceptual path length: the mean distance between neighboring frames over the squared step.

    Args:
        distances: perceptual distances between neighboring frames, `(F - 1,)`.
        frames: from point to point: a step is 1 / `frames` (Karras, Laine, Aila, CVPR 2019, Section 4.1).
    """
    return float(torch.as_tensor(distances).mean()) * frames**2
