"""What a run left, on one self-contained HTML page and in one short table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rcg.core.console import say
from rcg.encoding.run_folder import RunFolder, StageFolder
from rcg.visual.curves import draw_curves, latest, quality
from rcg.visual.documents import render


def write_page(run: RunFolder, path: Path) -> None:
    """Write a page about a run: samples, scores, curves, neighbors, cost, configuration.

    Args:
        run: with whatever its training, sampling and evaluation left there.
        path: of the page.

    Raises:
        UserError: nothing was trained in the run.
    """
    logs = run.logs()
    stages = [run.stage_folder(name) for name in logs]
    draw_curves(logs, run.curves)

    # The galleries of tools/sample.py, or else the last grid of the last training.
    galleries = sorted(run.path.glob("*/gallery.png")) or sorted(stages[-1].samples.glob("*.png"))[-1:]
    render(
        "run.html",
        path,
        title=f"rcg: {run.path}",
        galleries=[(gallery, _read(gallery.with_name("samples.json"))) for gallery in galleries],
        reports=[(report.parent, _read(report)) for report in sorted(run.evaluation.glob("*/report.json"))],
        sweeps=[(sweep.parent, _read(sweep)) for sweep in sorted(run.evaluation.glob("*/guidance.json"))],
        trainings=[_training_row(stage, latest(logs[stage.name])) for stage in stages],
        curves=run.curves,
        stages=stages,
    )
    say(str(path))


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
        rows.append((path.parent.name, f"{facts['num']} images", f"{facts['images_per_second']:.1f} images/s"))
    for path in sorted(run.evaluation.glob("*/report.json")):
        report = _read(path)
        scores = ", ".join(f"{score['name']} {score['value']:.4g}" for score in report["scores"])
        rows.append((path.parent.name, f"{report['num']} images", scores))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, cost, text in rows:
        say(f"{name:{widths[0]}}  {cost:{widths[1]}}  {text}")
    for path in sorted(run.path.glob("*/gallery.png")):
        say(f"\nlook at {path}")
    draw_curves(logs, run.curves)
    say(f"and at {run.curves}")


def _read(path: Path) -> dict[str, Any]:
    """Return the values of a JSON file, none where it is missing."""
    return json.loads(path.read_text()) if path.is_file() else {}


def _training_row(stage: StageFolder, log: Mapping[str, float]) -> tuple[str, str, str, str]:
    """Return name, cost, megabytes and quality of a stage."""
    megabytes = f"{stage.checkpoint.stat().st_size / 1e6:.1f}" if stage.is_trained else ""
    return stage.name, _cost(log), megabytes, quality(log)


def _cost(log: Mapping[str, float]) -> str:
    return f"{log['step']:.0f} steps in {log['seconds']:.0f} s"
