"""One evaluation: features of all images on all processes, then scores and a report on the first."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from rcg.evaluation.extractors import FeatureExtractor, condition_extractor, pixel_extractor
from rcg.evaluation.features import Features, extract
from rcg.evaluation.references import Reference, SplitImages
from rcg.evaluation.report import Origin, Report, draw_neighbors, neighbors_picture
from rcg.evaluation.samples import GeneratedImages, ImageSource, StoredImages, key
from rcg.evaluation.scores import (
    Bootstrap,
    ReferenceFeatures,
    Score,
    compare_features,
    consistency,
    memorization_scores,
    reference_fd,
    without_reference_fd,
)


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how.

    Attributes:
        samples: the images to evaluate.
        origin: the run that they come from; None: they are files.
        extractors: the networks in whose features they are compared.
        reference: what they are compared with.
        splits: the data set of the samples; None: it is not known, or was another in training.
        memorization: whether its training images are searched for samples.
        resamples: for stds; fewer than 2: none.
        warnings: sentences about what is missing.
    """

    samples: ImageSource
    origin: Origin | None
    extractors: Sequence[FeatureExtractor]
    reference: Reference
    splits: SplitImages | None
    memorization: bool
    resamples: int
    warnings: Sequence[str] = ()

    @property
    def own(self) -> FeatureExtractor | None:
        """The encoder of the run that is evaluated, if it is among the extractors."""
        return next((extractor for extractor in self.extractors if extractor.is_own), None)

    @property
    def checks_consistency(self) -> bool:
        """Whether that encoder made the representations that samples are conditioned on, or generated with."""
        samples = self.samples
        return self.own is not None and isinstance(samples, GeneratedImages) and samples.have_z

    @property
    def validation_is_reference(self) -> bool:
        """Whether samples are compared with the validation images themselves."""
        return self.splits is not None and self.splits.validation.facts == self.reference.facts

    @property
    def name(self) -> str:
        """A name for the report's folder that follows from everything that decides its scores."""
        settings = {
            "samples": self.samples.facts,
            "reference": self.reference.facts,
            "published": self.reference.name,
            "extractors": [extractor.facts for extractor in self.extractors],
            "searched": [extractor.name for extractor in self.memorization_extractors],
            "resamples": self.resamples,
        }
        subject = "images" if self.origin is None else self.origin.generator
        return f"{subject}-{len(self.samples)}-{key(settings)[:8]}"

    @property
    def memorization_extractors(self) -> list[FeatureExtractor]:
        """The extractors in whose features memorized samples are searched: pixels, and the run's own encoder."""
        if self.splits is None or not self.memorization:
            return []
        pixels = pixel_extractor(self.samples.size)
        return [pixels] if self.own is None else [pixels, self.own]


def evaluate(
    evaluation: Evaluation, out: Path, cache: Path, accelerator: Accelerator, save_images: bool = False
) -> Report | None:
    """Extract features on all processes; the first one computes the scores and writes the report.

    Args:
        evaluation: what is evaluated.
        out: folder of the report and the images.
        cache: folder of the features.
        accelerator: the processes; all but the first return None.
        save_images: whether samples are written as PNG files.
    """
    start = time.perf_counter()
    features = _extract(evaluation, out / "images" if save_images else None, cache, accelerator)
    if not accelerator.is_main_process:
        return None
    seconds = round(time.perf_counter() - start, 1)
    cost = {"seconds": seconds, "processes": accelerator.num_processes, "device": accelerator.device.type}

    # The Frechet distance needs float64, which not every accelerator has.
    device = accelerator.device if accelerator.device.type == "cuda" else torch.device("cpu")
    bootstrap = Bootstrap(evaluation.resamples, 0, device)
    warnings = list(evaluation.warnings)
    scores = list(_scores(evaluation, features, bootstrap, warnings))
    for extractor in evaluation.memorization_extractors:
        name = extractor.name
        memorization, numbers = memorization_scores(
            extractor, features.samples[name], features.train[name], features.validation[name], bootstrap
        )
        scores += numbers
        assert evaluation.splits is not None
        draw_neighbors(evaluation.samples, evaluation.splits.train, memorization, name, out / neighbors_picture(name))

    report = _report(evaluation, list(_finite(scores, warnings)), warnings, cost)
    report.write(out)
    return report


class _Features(NamedTuple):
    """The features of all sets of images, by the extractors' names; empty for sets that are not needed."""

    samples: dict[str, Features]
    reference: ReferenceFeatures
    train: dict[str, Features]
    validation: dict[str, Features]


def _extract(evaluation: Evaluation, pictures: Path | None, cache: Path, accelerator: Accelerator) -> _Features:
    """Compute all features that the scores need."""
    common, searched, splits = evaluation.extractors, evaluation.memorization_extractors, evaluation.splits
    pixels = [extractor for extractor in searched if not extractor.is_own]
    conditions = [condition_extractor()] if evaluation.checks_consistency else []
    extractors = [*common, *pixels, *conditions]
    samples = extract(evaluation.samples, extractors, cache, accelerator, "samples", pictures)
    reference = evaluation.reference.extract(common, cache, accelerator)
    if splits is None:
        return _Features(samples, reference, {}, {})
    train = extract(splits.train, searched, cache, accelerator, "train")
    # In all spaces: beside each distance of samples stands that of real images.
    validation = extract(splits.validation, [*pixels, *common], cache, accelerator, "validation")
    return _Features(samples, reference, train, validation)


def _scores(evaluation: Evaluation, features: _Features, bootstrap: Bootstrap, warnings: list[str]) -> Iterator[Score]:
    """Yield all scores but those of memorization."""
    reference, count = features.reference, len(evaluation.samples)
    splits = None if evaluation.validation_is_reference else evaluation.splits
    for extractor in evaluation.extractors:
        yield from compare_features(extractor, features.samples[extractor.name], reference, bootstrap, warnings)
        if splits is not None:
            yield from reference_fd(extractor, count, features.validation[extractor.name], reference)
    if splits is not None and len(splits.validation) < count:
        warnings.append(without_reference_fd(count, len(splits.validation)))
    if evaluation.checks_consistency:
        assert evaluation.own is not None
        condition = features.samples["condition"].read("z")
        encoded = features.samples[evaluation.own.name].read("z")
        yield from consistency(evaluation.own.name, condition, encoded, bootstrap)


def _finite(scores: list[Score], warnings: list[str]) -> Iterator[Score]:
    """Yield the scores that are numbers: of equal images, say, a ratio of distances is none."""
    for score in scores:
        if math.isfinite(score.value):
            yield score
        else:
            warnings.append(f"{score.name} ({score.space}) is left out: it is {score.value}")


def _report(evaluation: Evaluation, scores: list[Score], warnings: list[str], cost: dict[str, Any]) -> Report:
    samples, reference, number = evaluation.samples, evaluation.reference, len(evaluation.samples)
    origin = {} if evaluation.origin is None else evaluation.origin.to_json()
    reference_facts: dict[str, Any] = {"name": reference.name}
    if reference.images is not None:
        reference_facts |= {"number": len(reference.images), **reference.images.facts}
    return Report(
        title=samples.origin if isinstance(samples, StoredImages) else origin["run"],
        num=number,
        samples={**origin, "number": number, **samples.facts},
        reference=reference_facts,
        extractors=[{"name": extractor.name, **extractor.facts} for extractor in evaluation.extractors],
        resamples=evaluation.resamples,
        cost=cost,
        scores=scores,
        warnings=warnings,
        searched=[extractor.name for extractor in evaluation.memorization_extractors],
    )
