"""The evaluation that a person asks for: opens a run, a saved pipeline, a folder of images or an .npz batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator

from rcg.config import Experiment
from rcg.core.errors import UserError, nearest_file
from rcg.encoding.representation import Representation
from rcg.encoding.run_folder import RunFolder
from rcg.encoding.workspace import Workspace
from rcg.evaluation.evaluate import Evaluation
from rcg.evaluation.extractors import FeatureExtractor, MetricOptions
from rcg.evaluation.references import SPLITS, SplitImages, choose_reference
from rcg.evaluation.report import Origin
from rcg.evaluation.samples import (
    GeneratedImages,
    ImageSource,
    SamplingPlan,
    StoredImages,
    folder_images,
    npz_images,
    open_samples,
)
from rcg.pipeline import Pipeline


@dataclass(frozen=True)
class EvaluationOptions:
    """What a person may choose of an evaluation.

    Attributes:
        plan: how the samples of a run are generated.
        metrics: with what they are compared.
        experiment: whose data set `train` and `validation` mean, for files; None: that of the run.
        generator: name of the generator's folder in a run that has several.
        size: side in pixels to which pictures of a folder are cropped; None: that of the first one.
        representations: file of tools/sample_rdm.py to condition on; None: the RDM generates representations.
        memorization: whether the training set is searched for samples.
    """

    plan: SamplingPlan
    metrics: MetricOptions
    experiment: Experiment | None
    generator: str | None
    size: int | None
    representations: Path | None
    memorization: bool


class _Subject(NamedTuple):
    """What is evaluated, the experiment that it belongs to if known, and what opens its own encoder."""

    samples: ImageSource
    experiment: Experiment | None
    origin: Origin | None = None
    open_own: Callable[[], Representation] | None = None


def is_run(run: RunFolder) -> bool:
    """Whether a folder is that of a run, or of a saved pipeline."""
    stages = [run.encoder, run.autoencoder, run.rdm, *run.generators()]
    return any(stage.is_trained for stage in stages) or (run.path / "generator.safetensors").is_file()


def plan_evaluation(subject: RunFolder, options: EvaluationOptions, accelerator: Accelerator) -> Evaluation:
    """Open everything that an evaluation needs.

    Args:
        subject: a run or a saved pipeline, or at this path a folder of images, or an .npz batch.
        options: what a person chose.
        accelerator: the processes, and the device.

    Raises:
        UserError: something that was asked for cannot be opened, or does not fit.
    """
    samples, experiment, origin, open_own = _open(subject, options, accelerator)
    warnings, metrics = [], options.metrics
    splits = None
    try:
        if experiment is not None:
            splits = SplitImages.of(Workspace(experiment, accelerator).images)
    except UserError as error:
        if metrics.reference in SPLITS:
            raise
        warnings.append(f"memorization is not evaluated: {error}")
    reference = choose_reference(metrics.reference, splits, samples.size)
    extractors, missing = metrics.open_extractors(open_own, samples.size, accelerator)
    if splits is not None and isinstance(samples, GeneratedImages):
        changed = changed_images(samples.pipeline, splits.train)
        if changed:
            splits = None
            warnings.append(changed)
    if isinstance(samples, GeneratedImages):
        warnings += partial_judges(samples.pipeline.parts["generator"].facts.perceptual, extractors)
    if isinstance(samples, StoredImages):
        warnings += samples.doubts
    warnings += reference.doubts
    return Evaluation(
        samples, origin, extractors, reference, splits, options.memorization, metrics.resamples, [*warnings, *missing]
    )


def changed_images(pipeline: Pipeline, train: StoredImages) -> str | None:
    """Return a warning if a part was trained on other images than those that are now the training images.

    Then some validation images may have been trained on, and no measure that takes them for unseen would be true.
    """
    now = train.images.fingerprint
    parts = {kind: pipeline.parts[kind].facts.fingerprint for kind in ("generator", "rdm") if kind in pipeline.parts}
    others = [kind for kind, fingerprint in parts.items() if fingerprint not in ("", now)]
    if not others:
        return None
    return (
        f"{' and '.join(others)} were not trained on the {len(train)} images that are now the {train.origin}: "
        f"memorization and the reference distance are left out, for validation images may have been trained on"
    )


def partial_judges(learned: str, extractors: Sequence[FeatureExtractor]) -> Iterator[str]:
    """Yield a warning if an extractor is the encoder that the generator learned to please by a perceptual loss.

    Args:
        learned: that encoder as `name:digest`; empty: none.
        extractors: what judges the generator's images.

    Raises:
        UserError: there is no other extractor.
    """
    partial = [extractor.name for extractor in extractors if extractor.has_encoder(learned)]
    reason = f"the generator learned to please {learned.partition(':')[0]} (generator.perceptual)"
    if partial and len(partial) == len(extractors):
        raise UserError(
            f"{reason}, so that encoder alone cannot judge its images: add a judge, --inception FILE or --encoder FILE"
        )
    if partial:
        yield f"{reason}: distances in the space of {', '.join(partial)} flatter its images"


def _open(subject: RunFolder, options: EvaluationOptions, accelerator: Accelerator) -> _Subject:
    path = subject.path
    if not path.exists():
        hint = nearest_file(path, ".npz") if path.suffix else nearest_file(path)
        raise UserError(f"there is no {path}: expected a folder of a run or of images, or an .npz file; {hint}")
    if is_run(subject):
        return _open_run(subject, options, accelerator)
    samples = folder_images(path, options.size) if path.is_dir() else npz_images(path)
    return _Subject(samples, options.experiment)


def _open_run(run: RunFolder, options: EvaluationOptions, accelerator: Accelerator) -> _Subject:
    samples = open_samples(run, options.generator, options.plan, options.representations, accelerator.device)
    pipeline = samples.pipeline
    generator = options.generator or pipeline.config.folder_name
    experiment = options.experiment
    if experiment is None:
        saved = run.stage_folder(generator).experiment()
        experiment = saved and saved.model_copy(update={"run": run.path})

    def open_own() -> Representation:
        return pipeline.representation

    return _Subject(samples, experiment, Origin(run.path, generator), open_own)
