"""The scores of an evaluation, computed from stored features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg.core.errors import UserError
from rcg.evaluation.extractors import FeatureExtractor
from rcg.evaluation.features import Features
from rcg.metrics.bootstrap import MeanStd, bootstrap
from rcg.metrics.frechet import FittedGaussian
from rcg.metrics.inception import LOGITS, SPATIAL, inception_score, kernel_distance, subset_size
from rcg.metrics.manifold import coverage, density, in_manifold
from rcg.metrics.memorization import Memorization, memorization

MAX_NEIGHBOR_SEARCH = 10_000
"""Most images of each set whose neighbors are searched, drawn at random."""
MAX_KID_REFERENCES = 50_000
"""Most reference images that the KID's subsets are drawn from."""
NEIGHBORS = 5
"""Neighbors of density and coverage; sets of fewer images have none."""


class Score(NamedTuple):
    """One number of a report.

    Attributes:
        space: name of the extractor whose features it was computed from.
        name: of the metric.
        value: its value.
        std: mean and std over resamples, or over the parts or subsets by which the metric is defined.
        ideal: in words.
    """

    space: str
    name: str
    value: float
    std: MeanStd | None
    ideal: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-serializable values."""
        return self._asdict() | {"std": self.std and self.std._asdict()}


def find_score(scores: list[Score], space: str, name: str) -> Score | None:
    """Return the score with a name in a space, None where there is none."""
    return next((score for score in scores if (score.space, score.name) == (space, name)), None)


@dataclass(frozen=True)
class ReferenceFeatures:
    """What samples are compared with: features of images, published statistics, or both.

    Attributes:
        features: by the extractors' names.
        statistics: published Gaussians of the Inception network, by tap.
    """

    features: Mapping[str, Features]
    statistics: Mapping[str, FittedGaussian] = field(default_factory=dict)

    def gaussian(self, extractor: FeatureExtractor, tap: str) -> FittedGaussian | None:
        """Return the Gaussian of a tap, the published one first; None where there is neither."""
        if extractor.is_inception and tap in self.statistics:
            return self.statistics[tap]
        features = self.features.get(extractor.name)
        return None if features is None else features.gaussian(tap)


@dataclass(frozen=True)
class Bootstrap:
    """Estimates stds: so many resamples, drawn from a seed, computed on a device; fewer than 2: no stds."""

    resamples: int
    seed: int
    device: torch.device

    def mean(self, space: str, name: str, values: Tensor, ideal: str) -> Score:
        """Return the mean of `values` `(N,)` as a score."""
        return Score(space, name, float(values.mean()), self.std(lambda x: float(x.mean()), values), ideal)

    def std(self, metric: Callable[[Tensor], float], x: Tensor) -> MeanStd | None:
        """Resample a metric of `x` `(N, ...)`."""
        return bootstrap(metric, x, self.resamples, self.seed)


def compare_features(
    extractor: FeatureExtractor,
    samples: Features,
    reference: ReferenceFeatures,
    bootstrap: Bootstrap,
    warnings: list[str],
) -> Iterator[Score]:
    """Yield the scores of samples beside the reference in one space; what is doubtful joins `warnings`."""
    main, space = extractor.taps[0], extractor.name
    generated = samples.read(main).to(bootstrap.device)
    if extractor.distance.startswith("FID-"):
        warnings.append(f"{extractor.distance} is no FID: published scores are of tap 2048, and not comparable with it")

    # Distances of distributions
    for tap, name in ((main, extractor.distance), (SPATIAL, "sFID")):
        expected = reference.gaussian(extractor, tap) if tap in extractor.taps else None
        if expected is not None:
            x = generated if tap == main else samples.read(tap).to(bootstrap.device)
            yield _frechet(space, name, x, expected, bootstrap, warnings)
    if LOGITS in extractor.taps:
        inception = inception_score(samples.read(LOGITS))
        yield Score(space, "IS", inception.mean, inception, "high; over 10 parts")

    # Scores that need reference images
    features = reference.features.get(space)
    if features is None:
        warnings.append(f"the reference has statistics but no images: no KID, precision or recall in {space}")
        return
    if extractor.is_inception:
        real = features.read(main, MAX_KID_REFERENCES)
        kid = kernel_distance(generated, real)
        ideal = f"low; over 100 subsets of {subset_size(generated, real)}"
        yield Score(space, extractor.distance.replace("FID", "KID"), kid.mean, kid, ideal)
    queries = samples.read(main, MAX_NEIGHBOR_SEARCH).to(bootstrap.device)
    others = features.read(main, MAX_NEIGHBOR_SEARCH).to(bootstrap.device)
    yield from _neighbor_scores(space, queries, others, bootstrap, warnings)


def reference_fd(extractor: FeatureExtractor, validation: Features, reference: ReferenceFeatures) -> Iterator[Score]:
    """Yield the Frechet distance of validation images to the reference: a perfect generator's with as many samples."""
    tap = extractor.taps[0]
    expected = reference.gaussian(extractor, tap)
    if expected is not None:
        distance = validation.gaussian(tap).distance(expected)
        name = f"{extractor.distance} of {validation.store.count} validation images"
        yield Score(extractor.name, name, distance, None, "reference: as many perfect samples")


def _frechet(
    space: str, name: str, generated: Tensor, expected: FittedGaussian, bootstrap: Bootstrap, warnings: list[str]
) -> Score:
    """Return the distance of features to those that are expected."""
    count, width = generated.shape
    if len(expected.mean) != width:
        raise UserError(
            f"the reference's statistics are of {len(expected.mean)} features, but {name} compares {width}: published "
            f"statistics belong to tap 2048"
        )
    real = FittedGaussian(expected.count, expected.mean.to(bootstrap.device), expected.factor.to(bootstrap.device))
    for what, size in (("samples", count), ("reference images", expected.count)):
        if 0 < size <= width:  # published statistics do not say of how many images they are: 0
            warnings.append(
                f"{name}: {size} {what} are too few for {width} features: the covariance is singular and the distance "
                f"far too high; compare it only with others of as many images"
            )

    def distance(x: Tensor) -> float:
        return FittedGaussian.fit(x).distance(real)

    return Score(space, name, distance(generated), bootstrap.std(distance, generated), "low")


def _neighbor_scores(
    space: str, generated: Tensor, real: Tensor, bootstrap: Bootstrap, warnings: list[str]
) -> Iterator[Score]:
    """Yield scores that are means over vectors: these are resampled, while the neighborhoods stay."""
    if min(len(generated), len(real)) <= NEIGHBORS:
        warnings.append(
            f"{len(generated)} samples and {len(real)} reference images are too few for precision and recall"
        )
        return
    yield bootstrap.mean(space, "precision", in_manifold(generated, real), "high")
    yield bootstrap.mean(space, "recall", in_manifold(real, generated), "high")
    yield bootstrap.mean(space, "density", density(generated, real, NEIGHBORS), "high; about 1")
    yield bootstrap.mean(space, "coverage", coverage(real, generated, NEIGHBORS), "high")


def consistency(space: str, condition: Tensor, encoded: Tensor, bootstrap: Bootstrap) -> Iterator[Score]:
    """Yield the cosine of the samples' conditions and of their own representations, both `(N, D)`.

    Beside it stands the chance level: the condition of one sample and the representation of the next.
    """
    yield bootstrap.mean(space, "consistency", F.cosine_similarity(condition, encoded), "high; cosine in [-1, 1]")
    shuffled = F.cosine_similarity(condition, encoded.roll(1, 0))
    yield bootstrap.mean(space, "consistency, shuffled", shuffled, "chance level")


def memorization_scores(
    extractor: FeatureExtractor, samples: Features, train: Features, validation: Features, bootstrap: Bootstrap
) -> tuple[Memorization, list[Score]]:
    """Return how close samples are to training images in one space, and that as scores."""
    tap = extractor.taps[0]
    train_z, validation_z, sample_z = (
        features.read(tap).to(bootstrap.device) for features in (train, validation, samples)
    )
    result = memorization(sample_z, train_z, validation_z)
    copies = bootstrap.mean(extractor.name, "copies", result.copies, "about 0.01, as of validation images")
    novelty = Score(extractor.name, "novelty", result.ratio, None, "about 1; well below 1: memorization")
    return result, [copies, novelty]
