"""One comparison: networks that are missing are trained, every arm is sampled and judged alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from rcg.comparison.arms import ARMS, Drawing, check, samples_of, unavailable, variant
from rcg.comparison.cost import Cost, measured
from rcg.config import Experiment, GeneratorConfig
from rcg.core.errors import UserError
from rcg.distributed import launch as parallel
from rcg.encoding.autoencoder import open_autoencoder
from rcg.encoding.representation import open_representation
from rcg.encoding.workspace import fitted_representation
from rcg.evaluation import scores as figures
from rcg.evaluation.evaluate import Evaluation, Known, judge, sampled
from rcg.evaluation.extractors import Judges, chosen_reference, known_images
from rcg.evaluation.features import View, extract, own_view
from rcg.evaluation.report import Report
from rcg.evaluation.samples import Generated, Source
from rcg.evaluation.scores import Figure, Reference
from rcg.metrics.frechet import Gaussian
from rcg.training import stages


@dataclass(frozen=True)
class Study:
    """What is compared, and how.

    Attributes:
        experiment: its generator's condition is what the arms replace.
        keys: which arms, names of `rcg.comparison.arms.ARMS`.
        drawing: how samples are drawn.
        judges: the networks in whose features images are compared.
        reference: what they are compared with: `train`, `validation`, a folder, or an .npz file.
        resamples: for deviations.
        out: folder of the results.
        cache: folder of features.
        train: whether missing networks are trained; else only those arms are judged that are there.
    """

    experiment: Experiment
    keys: Sequence[str]
    drawing: Drawing
    judges: Judges
    reference: str
    resamples: int
    out: Path
    cache: Path
    train: bool

    @property
    def generator(self) -> GeneratorConfig:
        """The section of the experiment whose condition is replaced."""
        assert self.experiment.generator is not None
        return self.experiment.generator


@dataclass(frozen=True)
class Outcome:
    """What became of one arm.

    Attributes:
        folder: of its network in the run.
        missing: why it could not be judged; None: it was.
        facts: what the header of its network says of the training.
        cost: of its samples.
        report: of its evaluation.
    """

    folder: str
    missing: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost | None = None
    report: Report | None = None


@dataclass(frozen=True)
class Result:
    """What a comparison found; only the main process has one.

    Attributes:
        outcomes: by the keys of the arms.
        views: names of the networks that judged, and of the distances in their features.
        floors: the distances of held-out images.
        held_out: how many these are.
        device: what it ran on.
        warnings: sentences about what is doubtful or missing.
    """

    outcomes: dict[str, Outcome]
    views: list[tuple[str, str]]
    floors: list[Figure]
    held_out: int
    device: str
    warnings: list[str]


@dataclass(frozen=True)
class _Bench:
    """What judges all arms, and what it lacks."""

    views: list[View]
    reference: Source | None
    statistics: Mapping[str, Gaussian]
    known: Known
    accelerator: Accelerator
    warnings: list[str]


def compare(study: Study) -> Result | None:
    """Train what is missing, judge every arm, and return what was found; processes but the first return None.

    Raises:
        UserError: the experiment cannot be compared, or a part of its run is missing or belongs to another one.
    """
    check(study.experiment, study.keys)
    # All that follows runs in the precision of the trainings, which cannot change as long as a program runs.
    accelerator = parallel.start(study.generator.train.model_copy(update={"tracker": "none"}), shardable=True)
    known = known_images(study.experiment.data, accelerator)
    missing = _missing(study, known)
    bench = _set_up(study, known, accelerator)  # before hours of training, for it may be refused
    _say(study, missing, accelerator)
    if study.train:
        _train(study, missing)
    outcomes = {}
    for number, key in enumerate(study.keys, 1):
        state = missing.get(key, "sampled and judged")
        _print(accelerator, f"[{number}/{len(study.keys)}] {ARMS[key].name}: {state}")
        outcomes[key] = Outcome(_folder(key, study), state) if key in missing else _judged(key, study, bench)
    floors = _floors(study, bench)
    if not accelerator.is_main_process:
        return None
    said = [line for found in outcomes.values() if found.report for line in found.report.warnings]
    names = [(view.name, view.distance) for view in bench.views]
    device = f"{accelerator.num_processes} x {accelerator.device.type}"
    return Result(outcomes, names, floors, len(known.held_out), device, list(dict.fromkeys([*bench.warnings, *said])))


def _set_up(study: Study, known: Known, accelerator: Accelerator) -> _Bench:
    """Open the judges, after the neighbors that the networks need.

    Raises:
        UserError: the encoder or the autoencoder is not trained, or a judge or the reference cannot be had.
    """
    experiment, size = study.experiment, study.experiment.data.image_size
    open_autoencoder(study.generator.autoencoder, size, experiment.run)
    if any(ARMS[key].condition in stages.REPRESENTED for key in study.keys):
        open_representation(experiment)
    reference, statistics = chosen_reference(study.reference, known, size)
    warnings: list[str] = []

    def own() -> View:
        return own_view(fitted_representation(experiment, None), accelerator.device)

    views = study.judges.views(own, size, accelerator, warnings)
    return _Bench(views, reference, statistics, known, accelerator, warnings)


def _missing(study: Study, known: Known) -> dict[str, str]:
    """Return why arms cannot be judged, by their keys.

    Raises:
        UserError: a folder holds another experiment's network, or one that was trained for longer, or none is left.
    """
    found = {}
    for key in study.keys:
        reason = unavailable(key, study.experiment, known.train.images.classes) or _untrained(key, study)
        if reason:
            found[key] = reason
    if len(found) == len(study.keys):
        raise UserError(f"none of the arms can be judged: {'; '.join(dict.fromkeys(found.values()))}")
    return found


def _untrained(key: str, study: Study) -> str | None:
    """Return which network of an arm is not trained, where that is not about to be mended."""
    wanted = [ARMS[key], *([ARMS["none"]] if key == "encoded" else [])]
    for experiment in (variant(study.experiment, arm) for arm in wanted):
        there, steps = stages.generator_steps(experiment), study.generator.train.steps
        folder = stages.generator_folder(experiment)
        if there > steps:
            raise UserError(
                f"{folder} was trained for {there} steps, but generator.train.steps is {steps}: arms are compared at "
                f"equal training compute, so set it to {there}, or choose another run="
            )
        if there < steps and not study.train:
            return f"{folder.name} is at step {there} of {steps}: leave --no-train out to train it"
    return None


def _networks(study: Study, missing: Mapping[str, str]) -> dict[str, Experiment]:
    """Return the experiments whose generators the arms need, by the folders of these."""
    arms = [ARMS[key] for key in study.keys if key not in missing]
    if "encoded" in study.keys and "encoded" not in missing:
        arms.insert(0, ARMS["none"])
    experiments = [variant(study.experiment, arm) for arm in arms]
    return {stages.generator_folder(experiment).name: experiment for experiment in experiments}


def _say(study: Study, missing: Mapping[str, str], accelerator: Accelerator) -> None:
    """Say which networks are there and which are going to be trained."""
    for name, experiment in _networks(study, missing).items():
        there, steps = stages.generator_steps(experiment), study.generator.train.steps
        state = "is trained" if there == steps else f"will be trained from step {there} to {steps}"
        _print(accelerator, f"{experiment.run / name} {state}")


def _train(study: Study, missing: Mapping[str, str]) -> None:
    """Train the networks that are not there, or not to their end.

    Raises:
        UserError: one was interrupted.
    """
    for name, experiment in _networks(study, missing).items():
        if stages.generator_steps(experiment) < study.generator.train.steps:
            stages.train_generator(experiment, resume=True, overwrite=False)
            there = stages.generator_steps(experiment)
            if there < study.generator.train.steps:
                raise UserError(f"{name} was stopped at step {there}: the same command goes on from there")


def _folder(key: str, study: Study) -> str:
    return stages.generator_folder(variant(study.experiment, ARMS[key])).name


def _judged(key: str, study: Study, bench: _Bench) -> Outcome:
    samples = samples_of(key, study.experiment, study.drawing, bench.accelerator.device)
    own = next((view.name for view in bench.views if view.name.startswith("own-")), None)
    evaluation = Evaluation(
        samples,
        {"run": str(study.experiment.run), "generator": _folder(key, study), "arm": ARMS[key].name},
        bench.views,
        bench.reference,
        study.reference,
        bench.statistics,
        own,
        own is not None and sampled(samples),
        None,
        study.resamples,
    )
    report = judge(evaluation, study.out / key, study.cache, False, bench.accelerator)
    cost = None
    if bench.accelerator.is_main_process:
        cost = measured(samples, study.out / key / "shown.safetensors")
    return Outcome(_folder(key, study), None, _facts(samples), cost, report)


def _facts(samples: Generated) -> dict[str, Any]:
    part = samples.pipeline.parts["generator"]
    return {
        "steps": part.facts["step"],
        "seconds": part.facts["seconds"],
        "batch_size": part.config["train"]["batch_size"],
        "parameters": sum(tensor.numel() for tensor in part.tensors.values()),
        "guidance": samples.facts["guidance"],
        "sampler": samples.facts["sampler"],
        "told": samples.facts.get("told"),
        "clusters": len(samples.pipeline.counts or ()) or None,
    }


def _floors(study: Study, bench: _Bench) -> list[Figure]:
    """Return how far held-out images are from the reference: what as many perfect samples would get."""
    held_out, where = bench.known.held_out, (study.cache, bench.accelerator)
    if bench.reference is not None and bench.reference.facts == held_out.facts:
        return []
    real = extract(bench.reference, bench.views, *where, "reference") if bench.reference is not None else {}
    seen = extract(held_out, bench.views, *where, "validation")
    if not bench.accelerator.is_main_process:
        return []
    reference = Reference(real, bench.statistics)
    return [figure for view in bench.views for figure in figures.floor(view, seen[view.name], reference)]


def _print(accelerator: Accelerator, text: str) -> None:
    if accelerator.is_main_process:
        print(text, flush=True)
