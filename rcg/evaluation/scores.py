"""The figures of an evaluation, read off kept features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg.core.errors import UserError
from rcg.evaluation.features import Features, View
from rcg.metrics.bootstrap import Spread, bootstrap
from rcg.metrics.frechet import Gaussian
from rcg.metrics.inception import LOGITS, SPATIAL, inception_score, kernel_distance, subset_size
from rcg.metrics.manifold import among, coverage, density
from rcg.metrics.memorization import Memorization, memorization

COMPARED = 10_000
"""Most images of each set whose neighbors are searched, drawn at random."""
DRAWN = 50_000
"""Most reference images that the KID's subsets are drawn from."""
BALLS = 5
"""Neighbors of density and coverage; fewer images than that have none."""


class Figure(NamedTuple):
    """One number of a report."""

    space: str
    """Whose features it was computed from."""
    name: str
    value: float
    spread: Spread | None
    """Mean and deviation over resamples, or over the parts or subsets that the figure is defined by."""
    good: str


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: features of images, published statistics, or both.

    Attributes:
        features: by the views' names.
        statistics: published Gaussians of the Inception network, by output.
    """

    features: Mapping[str, Features]
    statistics: Mapping[str, Gaussian] = field(default_factory=dict)

    def gaussian(self, view: View, output: str) -> Gaussian | None:
        """Return the Gaussian of an output, the published one first; None where there is neither."""
        published = self.statistics.get(output) if view.facts.get("tap") else None
        if published is not None:
            return published
        found = self.features.get(view.name)
        return None if found is None else found.gaussian(output)


@dataclass(frozen=True)
class Resampling:
    """How deviations are estimated: so many resamples, drawn from a seed, computed on a device."""

    resamples: int
    seed: int
    device: torch.device

    def mean(self, space: str, name: str, values: Tensor, good: str) -> Figure:
        """Return the mean of `values` `(N,)` as a figure."""
        return Figure(space, name, float(values.mean()), self.spread(lambda x: float(x.mean()), values), good)

    def spread(self, figure: object, x: Tensor) -> Spread | None:
        """Resample a figure of `x` `(N, ...)`."""
        return bootstrap(figure, x, self.resamples, self.seed)  # type: ignore[arg-type]


def compared(
    view: View, samples: Features, reference: Reference, luck: Resampling, warnings: list[str]
) -> Iterator[Figure]:
    """Yield how the features of samples and of the reference differ in one view; what is doubtful joins `warnings`."""
    main = view.outputs[0]
    generated = samples.read(main).to(luck.device)
    if view.distance.startswith("FID-"):
        warnings.append(f"{view.distance} is no FID: published figures are of tap 2048, and not comparable with it")
    yield from _frechet(view, main, view.distance, generated, reference, luck, warnings)
    if SPATIAL in view.outputs:
        spatial = samples.read(SPATIAL).to(luck.device)
        yield from _frechet(view, SPATIAL, "sFID", spatial, reference, luck, warnings)
    if LOGITS in view.outputs:
        score = inception_score(samples.read(LOGITS))
        yield Figure(view.name, "IS", score.mean, score, "high; over 10 parts")
    if view.name not in reference.features:
        warnings.append(f"the reference has statistics but no images: no KID, precision or recall in {view.name}")
        return
    features = reference.features[view.name]
    if "tap" in view.facts:
        real = features.read(main, DRAWN)
        name = view.distance.replace("FID", "KID")
        kid = kernel_distance(generated, real)
        yield Figure(view.name, name, kid.mean, kid, f"low; over 100 subsets of {subset_size(generated, real)}")
    some, known = (found.read(main, COMPARED).to(luck.device) for found in (samples, features))
    yield from _neighbors(view.name, some, known, luck, warnings)


def floor(view: View, held_out: Features, reference: Reference) -> Iterator[Figure]:
    """Yield the Frechet distance of held-out images to the reference: what a perfect generator of as many would get."""
    known, real = reference.gaussian(view, view.outputs[0]), held_out.gaussian(view.outputs[0])
    if known is not None:
        name = f"{view.distance} of {held_out.count} held-out images"
        yield Figure(view.name, name, real.distance(known), None, "what as many perfect samples get")


def _frechet(
    view: View,
    output: str,
    name: str,
    generated: Tensor,
    reference: Reference,
    luck: Resampling,
    warnings: list[str],
) -> Iterator[Figure]:
    known = reference.gaussian(view, output)
    if known is None:
        return
    count, width = generated.shape
    if len(known.mean) != width:
        raise UserError(
            f"the reference's statistics are of {len(known.mean)} features, but {name} compares {width}: published "
            f"statistics belong to tap 2048"
        )
    real = Gaussian(known.count, known.mean.to(luck.device), known.factor.to(luck.device))
    for what, size in (("samples", count), ("reference images", known.count)):
        if 0 < size <= width:
            warnings.append(
                f"{name}: {size} {what} are too few for {width} features: the covariance is singular and the distance "
                f"far too high; compare it only with others of as many images"
            )

    def distance(x: Tensor) -> float:
        return Gaussian.fit(x).distance(real)

    yield Figure(view.name, name, distance(generated), luck.spread(distance, generated), "low")


def _neighbors(space: str, generated: Tensor, real: Tensor, luck: Resampling, warnings: list[str]) -> Iterator[Figure]:
    """Yield figures that are means over vectors: these are resampled, while the neighborhoods stay."""
    if min(len(generated), len(real)) <= BALLS:
        warnings.append(
            f"{len(generated)} samples and {len(real)} reference images are too few for precision and recall"
        )
        return
    yield luck.mean(space, "precision", among(generated, real), "high")
    yield luck.mean(space, "recall", among(real, generated), "high")
    yield luck.mean(space, "density", density(generated, real, BALLS), "high; about 1")
    yield luck.mean(space, "coverage", coverage(real, generated, BALLS), "high")


def consistency(space: str, condition: Tensor, seen: Tensor, luck: Resampling) -> Iterator[Figure]:
    """Yield the cosine of what samples were painted from and what the encoder sees in them, both `(N, D)`.

    Beside it stands that of strangers: what one sample was painted from and what is seen in the next.
    """
    yield luck.mean(space, "consistency", F.cosine_similarity(condition, seen), "high; cosine in [-1, 1]")
    strangers = F.cosine_similarity(condition, seen.roll(1, 0))
    yield luck.mean(space, "consistency of strangers", strangers, "what chance gives")


def memorized(
    view: View, samples: Features, train: Features, held_out: Features, luck: Resampling
) -> tuple[Memorization, list[Figure]]:
    """Return how close samples are to training images in one view, and that as figures."""
    output = view.outputs[0]
    near, far, new = (features.read(output).to(luck.device) for features in (train, held_out, samples))
    found = memorization(new, near, far)
    copies = luck.mean(view.name, "copies", found.copies, "about 0.01, as of held-out images")
    ratio = Figure(view.name, "novelty", found.ratio, None, "about 1; well below, it memorizes")
    return found, [copies, ratio]
