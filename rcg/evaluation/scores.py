"""The scores of an evaluation, computed from stored features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg.core.errors import UserError
from rcg.evaluation.extractors import FeatureExtractor
from rcg.evaluation.features import Features
from rcg.metrics.bootstrap import bootstrap
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
IS_PARTS = 10
"""Parts of the samples over which the Inception score is taken."""


class Score(NamedTuple):
    """One number of a report.

    Attributes:
        space: name of the extractor whose features it was computed from.
        name: of the metric.
        value: its value.
        ideal: in words.
        std: of the value; None: not known.
        over: what the std is over, in words.
        is_biased: whether it is of so few images that it depends on their number more than on the images.
        is_reference: whether it is of real images, beside the samples' own.
    """

    space: str
    name: str
    value: float
    ideal: str
    std: float | None = None
    over: str = ""
    is_biased: bool = False
    is_reference: bool = False

    @property
    def text(self) -> str:
        """The value, with its std where that is known."""
        return f"{self.value:.4g}" if self.std is None else f"{self.value:.4g} ± {self.std:.2g}"


def _counted(samples: Tensor) -> str:
    """Return `1 sample` or `N samples`."""
    return f"{len(samples)} sample{'' if len(samples) == 1 else 's'}"


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

    def score(
        self,
        space: str,
        name: str,
        metric: Callable[[Tensor], float],
        x: Tensor,
        ideal: str,
        of: str = "samples",
        is_biased: bool = False,
    ) -> Score:
        """Return a metric of `x` `(N, ...)` as a score; `of` says what the rows are, which are resampled."""
        std = bootstrap(metric, x, self.resamples, self.seed)
        over = "" if std is None else f"{self.resamples} resamples of the {of}"
        return Score(space, name, metric(x), ideal, std, over, is_biased)

    def mean(self, space: str, name: str, values: Tensor, ideal: str, of: str = "samples") -> Score:
        """Return the mean of `values` `(N,)` as a score; `of` says what they belong to."""
        return self.score(space, name, lambda x: float(x.mean()), values, ideal, of)


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
            yield from _frechet(space, name, x, expected, bootstrap, warnings)
    if LOGITS in extractor.taps and len(generated) < IS_PARTS:
        warnings.append(f"{_counted(generated)} are too few for an IS, which is over {IS_PARTS} parts of them")
    elif LOGITS in extractor.taps:
        inception = inception_score(samples.read(LOGITS), IS_PARTS)
        yield Score(space, "IS", inception.mean, "high", inception.std, f"{IS_PARTS} parts of the samples")

    # Scores that need reference images
    features = reference.features.get(space)
    if features is None:
        warnings.append(f"the reference has statistics but no images: no KID, precision or recall in {space}")
        return
    if extractor.is_inception:
        yield from _kernel_distance(extractor, generated, features.read(main, MAX_KID_REFERENCES), warnings)
    queries = samples.read(main, MAX_NEIGHBOR_SEARCH).to(bootstrap.device)
    others = features.read(main, MAX_NEIGHBOR_SEARCH).to(bootstrap.device)
    yield from _neighbor_scores(space, queries, others, bootstrap, warnings)


def reference_fd(
    extractor: FeatureExtractor, count: int, validation: Features, reference: ReferenceFeatures
) -> Iterator[Score]:
    """Yield the Frechet distance of `count` validation images to the reference: that of as many perfect samples.

    A distance of fewer images is a larger one, so there is none where the validation images are fewer than `count`.
    """
    tap = extractor.taps[0]
    expected = reference.gaussian(extractor, tap)
    if expected is not None and 2 <= count <= validation.store.count:
        distance = FittedGaussian.fit(validation.read(tap, count)).distance(expected)
        name = f"{extractor.distance} of {count} validation images"
        yield Score(extractor.name, name, distance, "reference: as many perfect samples", is_reference=True)


def without_reference_fd(count: int, validation: int) -> str:
    """Say why there is no distance of real images beside that of `count` samples."""
    return (
        f"there is no reference distance: it would need {count} validation images, as many as samples, but there are "
        f"{validation} (--num {validation} or fewer has one)"
    )


def _frechet(
    space: str, name: str, generated: Tensor, expected: FittedGaussian, bootstrap: Bootstrap, warnings: list[str]
) -> Iterator[Score]:
    """Yield the distance of features to those that are expected; one image has no covariance, and no distance."""
    number, width = generated.shape
    if len(expected.mean) != width:
        raise UserError(
            f"the reference's statistics are of {len(expected.mean)} features, but {name} compares {width}: published "
            f"statistics belong to tap 2048"
        )
    if min(number, expected.count or number) < 2:
        warnings.append(f"no {name} in {space}: a covariance needs at least 2 samples and 2 reference images")
        return
    real = FittedGaussian(expected.count, expected.mean.to(bootstrap.device), expected.factor.to(bootstrap.device))
    is_biased = False
    for what, size in (("samples", number), ("reference images", expected.count)):
        if 0 < size <= width:  # published statistics do not say of how many images they are: 0
            is_biased = True
            warnings.append(
                f"{name}: {size} {what} are too few for {width} features: the covariance is singular and the distance "
                f"far too high; compare it only with others of as many images"
            )

    def distance(x: Tensor) -> float:
        return FittedGaussian.fit(x).distance(real)

    yield bootstrap.score(space, name, distance, generated, "low", is_biased=is_biased)


def _kernel_distance(
    extractor: FeatureExtractor, generated: Tensor, real: Tensor, warnings: list[str]
) -> Iterator[Score]:
    """Yield the KID; its unbiased estimate needs two images of each kind."""
    name = extractor.distance.replace("FID", "KID")
    if min(len(generated), len(real)) < 2:
        warnings.append(f"no {name}: it needs at least 2 samples and 2 reference images")
        return
    kid = kernel_distance(generated, real)
    over = f"100 subsets of {subset_size(generated, real)} images"
    yield Score(extractor.name, name, kid.mean, "low", kid.std, over)


def _neighbor_scores(
    space: str, generated: Tensor, real: Tensor, bootstrap: Bootstrap, warnings: list[str]
) -> Iterator[Score]:
    """Yield scores that are means over vectors: these are resampled, while the neighborhoods stay."""
    if min(len(generated), len(real)) <= NEIGHBORS:
        warnings.append(
            f"{_counted(generated)} and {len(real)} reference images are too few for precision and recall: these need "
            f"more than {NEIGHBORS} of each"
        )
        return
    yield bootstrap.mean(space, "precision", in_manifold(generated, real), "high")
    yield bootstrap.mean(space, "recall", in_manifold(real, generated), "high", "reference images")
    yield bootstrap.mean(space, "density", density(generated, real, NEIGHBORS), "high; about 1")
    yield bootstrap.mean(space, "coverage", coverage(real, generated, NEIGHBORS), "high", "reference images")


def consistency(space: str, condition: Tensor, encoded: Tensor, bootstrap: Bootstrap) -> Iterator[Score]:
    """Yield the cosine of the samples' conditions and of their own representations, both `(N, D)`.

    Beside it stands the chance level: the condition of one sample and the representation of the next.
    """
    yield bootstrap.mean(space, "consistency", F.cosine_similarity(condition, encoded), "high; cosine in [-1, 1]")
    if len(condition) > 1:
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
    novelty = Score(extractor.name, "novelty", result.ratio, "about 1; well below 1: memorization")
    return result, [copies, novelty]
