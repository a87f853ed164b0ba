"""What a run left, on one self-contained HTML page and in one short table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rcg.core.console import say, warn
from rcg.core.errors import UserError
from rcg.encoding.run_folder import RunFolder, StageFolder
from rcg.evaluation.report import Report
from rcg.metrics.forecast import PowerLaw
from rcg.visual.curves import Expected, draw_curves, draw_expected, latest, quality
from rcg.visual.documents import Document, read_json, render, typed

DISTANCES = {"fd": "own encoder", "fd_judge": "second encoder"}
"""Distances in the log of a generator, and whose space they are measured in."""


def write_page(run: RunFolder, path: Path) -> None:
    """Write a page about a run: samples, reports, curves, cost, configuration.

    Args:
        run: with whatever its training, sampling and evaluation left there.
        path: of the page.

    Raises:
        UserError: nothing was trained in the run.
    """
    logs = run.logs()
    stages = [run.stage_folder(name) for name in logs]
    draw_curves(logs, run.curves)
    _draw_distances(run, logs)

    # The galleries of tools/sample.py, or else the last grid of the last training.
    galleries = sorted(run.path.glob("*/gallery.png")) or sorted(stages[-1].samples.glob("*.png"))[-1:]
    render(
        "run.html",
        path,
        title=f"rcg: {run.path}",
        galleries=[(gallery, _read(gallery.with_name("samples.json"))) for gallery in galleries],
        documents=list(_documents(run)),
        trainings=[_training_row(stage, latest(logs[stage.name])) for stage in stages],
        curves=run.curves,
        distances=run.distances,
        stages=stages,
    )
    say(str(path))


def _draw_distances(run: RunFolder, logs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Draw the distances of generators against minutes, and where they go until their last steps."""
    metrics = {}
    for stage, lines in logs.items():
        for name, label in DISTANCES.items():
            points = [line for line in lines if name in line]
            if points:
                metrics[f"{stage}, {label}"] = _expected(run.stage_folder(stage), name, points)
    draw_expected(metrics, "Frechet distance to training images, as of infinitely many samples", run.distances)


def _expected(stage: StageFolder, name: str, points: Sequence[Mapping[str, float]]) -> Expected:
    """Return a metric's values against minutes, and the power law through them up to the last step."""
    steps, values = [line["step"] for line in points], [line[name] for line in points]
    law, end = PowerLaw.fit(steps, values), max(_last_step(stage), steps[-1])
    minutes_per_step = points[-1]["seconds"] / 60 / steps[-1]
    curve: list[tuple[float, float]] = []
    if law is not None:
        between = [steps[0] + (end - steps[0]) * i / 50 for i in range(51)]
        curve = [(step * minutes_per_step, law.at(step)) for step in between]
    return Expected([(step * minutes_per_step, value) for step, value in zip(steps, values, strict=True)], curve)


def _last_step(stage: StageFolder) -> float:
    """Return the step at which the training of a generator ends, 0 where that is not known."""
    experiment = stage.experiment()
    return 0 if experiment is None or experiment.generator is None else experiment.generator.train.steps


def _documents(run: RunFolder) -> Iterator[tuple[Path, Document]]:
    """Yield the reports in a run, each with its folder; those that cannot be read are warned of, and left out."""
    found: list[tuple[str, Callable[[Path], Document]]] = [
        (f"{run.evaluation.name}/*/report.json", lambda path: Report.read(path).document),
        (f"{run.evaluation.name}/*/guidance.json", _read_document),
        ("*/compare.json", lambda path: typed(Document, read_json(path).get("report"), path)),
        (f"{run.rdm.name}/samplers.json", _read_document),
        (f"{run.representations.name}/classes.json", _read_document),
        (f"{run.encoder_report.name}/report.json", _read_document),
    ]
    for pattern, read in found:
        for path in sorted(run.path.glob(pattern)):
            try:
                yield path.parent, read(path)
            except UserError as error:
                warn(f"left out of the page: {error}")


def _read_document(path: Path) -> Document:
    return typed(Document, read_json(path), path)


def summarize(run: RunFolder) -> None:
    """Print what the logs of all stages, the last sampling and the evaluations say, and draw the curves.

    Raises:
        UserError: nothing was trained in the run.
    """
    logs = run.logs()
    rows = []
    for name, lines in logs.items():
        log = latest(lines)
        rows.append((name, _cost(log), quality(log)))
    for path in sorted(run.path.glob("*/samples.json")):
        facts = _read(path)
        if {"num", "images_per_second"} <= set(facts):
            rows.append((path.parent.name, f"{facts['num']} images", f"{facts['images_per_second']} images/s"))
    for path in sorted(run.evaluation.glob("*/report.json")):
        try:
            report = Report.read(path)
        except UserError as error:
            warn(f"left out: {error}")
            continue
        scores = ", ".join(f"{score.name} {score.value:.4g}" for score in report.scores)
        rows.append((path.parent.name, f"{report.num} images", scores))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, cost, text in rows:
        say(f"{name:{widths[0]}}  {cost:{widths[1]}}  {text}")
    for path in sorted(run.path.glob("*/gallery.png")):
        say(f"\nlook at {path}")
    draw_curves(logs, run.curves)
    if run.curves.is_file():
        say(f"and at {run.curves}")


def _read(path: Path) -> dict[str, Any]:
    """Return the values of a JSON file, none where it is missing or damaged."""
    try:
        return read_json(path) if path.is_file() else {}
    except UserError as error:
        warn(f"left out: {error}")
        return {}


def _training_row(stage: StageFolder, log: Mapping[str, float]) -> tuple[str, str, str, str]:
    """Return name, cost, megabytes and quality of a stage."""
    megabytes = f"{stage.checkpoint.stat().st_size / 1e6:.1f}" if stage.is_trained else ""
    return stage.name, _cost(log), megabytes, quality(log)


def _cost(log: Mapping[str, float]) -> str:
    return f"{log['step']:.0f} steps in {log['seconds']:.0f} s"
