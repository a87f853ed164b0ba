"""One comparison: missing networks are trained, and every arm is sampled and evaluated alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from rcg.comparison.arms import ARMS
from rcg.comparison.cost import SampleCost, cached_cost
from rcg.comparison.samples import TRAINING, arm_samples
from rcg.comparison.study import Study, check
from rcg.core.console import say
from rcg.encoding.lock import run_lock
from rcg.evaluation.evaluate import Evaluation, evaluate
from rcg.evaluation.extractors import FeatureExtractor
from rcg.evaluation.features import extract
from rcg.evaluation.plan import partial_judges
from rcg.evaluation.references import Reference, SplitImages, choose_reference
from rcg.evaluation.report import Origin, Report
from rcg.evaluation.scores import Score, find_score, reference_fd, without_reference_fd


class TrainingFacts(NamedTuple):
    """How the network of an arm was trained, and how it is sampled.

    Attributes:
        steps: of training.
        seconds: that these took.
        batch_size: of one step.
        parameters: number of weights.
        guidance: settings of guidance; None: without.
        sampler: settings of the sampler.
        representations: what the samples' representations are of, unless the RDM generates them.
        clusters: number of clusters, for a network conditioned on them.
    """

    steps: int
    seconds: float
    batch_size: int
    parameters: int
    guidance: dict[str, Any] | None
    sampler: dict[str, Any]
    representations: dict[str, Any] | None
    clusters: int | None


@dataclass(frozen=True)
class Outcome:
    """The result of one arm.

    Attributes:
        folder: name of its network's folder in the run.
        left_out: why it could not be evaluated; None: it was.
        training: of its network.
        cost: of its samples.
        report: of its evaluation.
    """

    folder: str
    left_out: str | None = None
    training: TrainingFacts | None = None
    cost: SampleCost | None = None
    report: Report | None = None


@dataclass(frozen=True)
class Result:
    """The result of a comparison; only the first process has one.

    Attributes:
        outcomes: by the keys of the arms.
        distances: names of the extractors, and of the distances in their features.
        reference_fds: the distances of as many validation images as there are samples; none where they are fewer.
        device: what it ran on.
        warnings: sentences about what is doubtful or missing.
    """

    outcomes: dict[str, Outcome]
    distances: list[tuple[str, str]]
    reference_fds: list[Score]
    device: str
    warnings: list[str]

    def score(self, key: str, space: str, name: str) -> Score | None:
        """Return a score of an arm, None where there is none."""
        outcome = self.outcomes.get(key)
        return find_score(outcome.report.scores, space, name) if outcome and outcome.report else None


class _Bench(NamedTuple):
    """What all arms are evaluated with, and what is missing."""

    extractors: list[FeatureExtractor]
    reference: Reference
    splits: SplitImages
    warnings: list[str]


def compare(study: Study) -> Result | None:
    """Train what is missing, and evaluate every arm; processes but the first return None.

    Raises:
        UserError: the experiment cannot be compared, or a part of its run is missing or belongs to another one, or
            another command writes into the run.
    """
    with run_lock(study.work.run.path):
        return _compare(study)


def _compare(study: Study) -> Result | None:
    check(study.work, study.keys, study.plan.options)
    left_out = study.left_out_arms()
    bench = _set_up(study)  # before hours of training, for it may be refused
    study.announce(left_out)
    study.train_networks(left_out)

    outcomes = {}
    for number, key in enumerate(study.keys, 1):
        state = left_out.get(key)
        say(f"[{number}/{len(study.keys)}] {ARMS[key].name}: {state or 'sampling and evaluation'}")
        folder = ARMS[key].variant(study.generator).folder_name
        outcomes[key] = Outcome(folder, state) if state else _evaluate(key, folder, study, bench)
    reference_fds = _reference_fds(study, bench)

    accelerator = study.work.accelerator
    if not accelerator.is_main_process:
        return None
    reports = [outcome.report for outcome in outcomes.values() if outcome.report is not None]
    warnings = [*bench.warnings, *_doubts_of_oracle(outcomes, len(bench.splits.validation))]
    warnings += [warning for report in reports for warning in report.warnings]
    return Result(
        outcomes=outcomes,
        distances=[(extractor.name, extractor.distance) for extractor in bench.extractors],
        reference_fds=reference_fds,
        device=f"{accelerator.num_processes} x {accelerator.device.type}",
        warnings=list(dict.fromkeys(warnings)),
    )


def _doubts_of_oracle(outcomes: Mapping[str, Outcome], validation: int) -> Iterator[str]:
    """Say that the oracle's representations are those that its network was trained on, where they are."""
    training = outcomes["oracle"].training if "oracle" in outcomes else None
    if training is not None and training.representations and training.representations["of"] == TRAINING:
        yield (
            f"the oracle's representations are of {TRAINING}, on which its network was trained: --num {validation} or "
            f"fewer takes validation images"
        )


def _set_up(study: Study) -> _Bench:
    """Open the extractors, after the neighbors that the networks need.

    Raises:
        UserError: the encoder or the autoencoder is not trained, or an extractor or the reference cannot be opened.
    """
    work = study.work
    _ = work.autoencoder
    if any(ARMS[key].needs_encoder for key in study.keys):
        _ = work.encoder
    splits = SplitImages.of(work.images)
    reference = choose_reference(study.metrics.reference, splits, work.image_size)
    extractors, warnings = study.metrics.open_extractors(lambda: work.representation, work.image_size, work.accelerator)
    warnings += partial_judges(work.perceptual_name, extractors)
    return _Bench(extractors, reference, splits, [*warnings, *reference.doubts])


def _evaluate(key: str, folder: str, study: Study, bench: _Bench) -> Outcome:
    """Sample and evaluate one arm; the first process measures the cost of its samples too."""
    work = study.work
    samples = arm_samples(key, work, study.plan)
    origin = Origin(work.run.path, folder, ARMS[key].name)
    evaluation = Evaluation(samples, origin, bench.extractors, bench.reference, None, False, study.metrics.resamples)
    out = study.out / key
    report = evaluate(evaluation, out, study.cache, work.accelerator)
    cost = cached_cost(samples, out / "first-samples.safetensors") if work.accelerator.is_main_process else None
    part = samples.pipeline.parts["generator"]
    training = TrainingFacts(
        steps=part.facts.step,
        seconds=part.facts.seconds,
        batch_size=samples.pipeline.config.train.batch_size,
        parameters=sum(tensor.numel() for tensor in part.tensors.values()),
        guidance=None if samples.guidance is None else samples.guidance.model_dump(mode="json"),
        sampler=samples.sampler.model_dump(mode="json"),
        representations=None if samples.representations is None else samples.representations.facts,
        clusters=len(part.facts.cluster_counts) or None,
    )
    return Outcome(folder, None, training, cost, report)


def _reference_fds(study: Study, bench: _Bench) -> list[Score]:
    """Return the distances of validation images to the reference: those of as many perfect samples.

    There are none where the validation images are the reference, or are fewer than samples.
    """
    validation, accelerator, count = bench.splits.validation, study.work.accelerator, study.plan.count
    if bench.reference.facts == validation.facts:
        return []
    if len(validation) < count:
        bench.warnings.append(without_reference_fd(count, len(validation)))
        return []
    reference = bench.reference.extract(bench.extractors, study.cache, accelerator)
    features = extract(validation, bench.extractors, study.cache, accelerator, "validation")
    if not accelerator.is_main_process:
        return []
    return [
        score
        for extractor in bench.extractors
        for score in reference_fd(extractor, count, features[extractor.name], reference)
    ]
