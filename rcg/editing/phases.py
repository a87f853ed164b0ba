"""When to edit in h-space, and when to boost quality: two times read off perceptual distances (Asyrp, Section 4).

Until t_edit the estimate of clean data is edited, until t_boost it is denoised, then fresh noise makes it sharper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rcg.core.console import say
from rcg.core.errors import UserError
from rcg.editing.distance import ImageDistance, open_distance
from rcg.pipeline import Pipeline

EDIT_SHARE, BOOST_SHARE = 0.28, 0.85
"""The published thresholds, LPIPS 0.33 for t_edit and 1.2 for t_boost, as shares of the whole rise of a curve: means
over the curves that Asyrp published of churches, bedrooms, dogs and portraits, where they are 0.25 to 0.34 and 0.80
to 0.90. A share can be taken of any distance; a threshold belongs to one."""
MOST_IMAGES = 100
"""Images that are measured, as published."""
STEPS = 40
"""Levels at which curves are measured."""


@dataclass(frozen=True)
class Phases:
    """When sampling changes, as shares of the times: 1 is noise, 0 clean data.

    Attributes:
        edit: t_edit; at this time and above, the estimate of clean data is edited.
        boost: t_boost; below it, eta is 1.
    """

    edit: float
    boost: float


@dataclass(frozen=True)
class Curves:
    """Mean perceptual distances to images on the way from them to noise.

    Attributes:
        times: shares of the times, growing.
        predicted: of the estimate of clean data at each time.
        noisy: of x_t itself.
    """

    times: list[float]
    predicted: list[float]
    noisy: list[float]


def choose_phases(
    pipeline: Pipeline, images: Tensor, t_edit: float | None = None, t_boost: float | None = None
) -> Phases:
    """Return the given phases; those that are not given are found from the curves of some images.

    Args:
        pipeline: of the run.
        images: `(N, 3, S, S)` in [0, 1].
        t_edit: share of the times; None: found.
        t_boost: share of the times; None: found, and not above `t_edit`.

    Raises:
        UserError: boosting would begin before editing ends.
    """
    if t_edit is None or t_boost is None:
        distance = open_distance(pipeline)
        found = find_phases(measure_curves(pipeline, images, distance))
        t_edit = found.edit if t_edit is None else t_edit
        t_boost = min(found.boost, t_edit) if t_boost is None else t_boost
        say(
            f"editing ends at {t_edit:.3g} of the way to noise, and boosting begins at {t_boost:.3g}, by distances "
            f"{distance.name}"
        )
    if t_boost > t_edit:
        raise UserError(f"t_boost is {t_boost:g}, but editing ends at t_edit {t_edit:g}: quality is boosted after that")
    return Phases(t_edit, t_boost)


@torch.inference_mode()
def measure_curves(
    pipeline: Pipeline, images: Tensor, distance: ImageDistance, steps: int = STEPS, batch_size: int = 64
) -> Curves:
    """Measure the curves of images `(N, 3, S, S)` in [0, 1], at most `MOST_IMAGES` of them."""
    decode, model = pipeline.autoencoder.decode, pipeline.generator
    levels = model.process.levels(steps, "trailing")
    sums, images = torch.zeros(steps, 2, dtype=torch.float64), images[:MOST_IMAGES]
    for batch in images.split(batch_size):
        image = batch.to(pipeline.device)
        x = pipeline.autoencoder.mean(pipeline.autoencoder.posterior(image)).float()
        way = model.noising(x, pipeline.represent(image), levels, iterations=1)
        for row, (_, x_t, x0) in zip(sums, way, strict=True):
            row += len(batch) * torch.stack([distance.network(decode(each), image) for each in (x0, x_t)]).cpu()
    predicted, noisy = (sums / len(images)).T.tolist()
    times = [level.t / model.process.horizon for level in reversed(levels[:-1])]
    return Curves(times, predicted, noisy)


def find_phases(curves: Curves, edit: float = EDIT_SHARE, boost: float = BOOST_SHARE) -> Phases:
    """Find the first times at which the curves have risen by some share of their whole rise.

    Args:
        curves: of some images.
        edit: share in [0, 1] of the rise of `curves.predicted`; a smaller one edits longer.
        boost: share in [0, 1] of the rise of `curves.noisy`.
    """
    return Phases(_first(curves.times, curves.predicted, edit), _first(curves.times, curves.noisy, boost))


def _first(times: list[float], distances: list[float], share: float) -> float:
    return next(time for time, value in zip(times, distances, strict=True) if value >= share * max(distances))
