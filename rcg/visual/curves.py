"""The logs of a run as pictures and words: losses and metrics over steps, one row for each stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure

from rcg.core.checkpoint import atomic
from rcg.core.errors import UserError

Line = Mapping[str, float]
NOT_CURVES = {"step", "seconds", "lr"}
TOGETHER = {"rep_fd_floor": "rep_fd", "rep_recall": "rep_precision", "rep_agreement_real": "rep_agreement"}
"""What is drawn into the panel of something else."""
COLUMNS = 5


def read_logs(run: Path) -> dict[str, list[Line]]:
    """Return the lines of all stages' logs, in the order of training.

    Raises:
        UserError: nothing was trained in `run`.
    """
    logs = {path.parent.name: path.read_text().splitlines() for path in sorted(run.glob("*/log.jsonl"))}
    if not logs:
        raise UserError(f"{run} holds no trained stage: run tools/train_encoder.py first")
    order = sorted(logs, key=lambda name: {"encoder": 0, "autoencoder": 1, "rdm": 2}.get(name, 3))
    return {name: [json.loads(line) for line in logs[name]] for name in order}


def latest(lines: Sequence[Line]) -> dict[str, float]:
    """Merge the lines of a log, later ones winning."""
    return {name: value for line in lines for name, value in line.items()}


def quality(log: Line) -> str:
    """Turn the last metrics of a stage into words."""
    words = []
    if "knn_accuracy" in log:
        words.append(f"10-NN accuracy {log['knn_accuracy']:.1%}")
    elif "effective_rank" in log:
        words.append(f"effective rank {log['effective_rank']:.1f}, uniformity {log['uniformity']:.2f}")
    if "psnr" in log:
        words.append(f"PSNR {log['psnr']:.2f} dB, SSIM {log['ssim']:.3f}")
    if "code_usage" in log:
        words.append(f"code usage {log['code_usage']:.1%}, perplexity {log['perplexity']:.0f}")
    words += [f"{key} {log[key]:.3g}" for key in log if key.startswith(("rfid_", "encoder_fd"))]
    if "rep_fd" in log:
        words.append(f"rep-FD {log['rep_fd']:.3g} (floor {log['rep_fd_floor']:.3g})")
    if "rep_precision" in log:
        words.append(f"precision {log['rep_precision']:.2f}, recall {log['rep_recall']:.2f}")
        words.append(f"novelty {log['rep_novelty']:.2f}")
    if "rep_agreement" in log:
        words.append(f"class agreement {log['rep_agreement']:.1%} (real {log['rep_agreement_real']:.1%})")
    words += [f"{key.replace('_', ' ')} {log[key]:.4g}" for key in log if key.startswith("validation_")]
    return ", ".join(words)


def draw_together(logs: Mapping[str, Sequence[Line]], path: Path, along: str = "step") -> None:
    """Write a PNG with a panel for each quantity and in it a curve for each log, over what its lines call `along`."""
    names = list(dict.fromkeys(name for lines in logs.values() for name in _panels(lines) if name != along))
    rows = _chunks(names)
    figure = matplotlib.figure.Figure(figsize=(4.4 * len(rows[0]), 3.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False).flatten()
    for panel, name in zip(axes, names, strict=False):
        for stage, lines in logs.items():
            _plot(panel, lines, name, stage, along)
        panel.set_title(name.replace("_", " "), fontsize=9)
        panel.set_xlabel(along, fontsize=7)
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=7)
    for panel in axes[len(names) :]:
        panel.axis("off")
    _save(figure, path)


def draw_curves(logs: Mapping[str, Sequence[Line]], path: Path) -> None:
    """Write a PNG with the curves of every stage's log, whose lines hold `step` and some values."""
    names = {stage: _panels(lines) for stage, lines in logs.items()}
    rows = [(stage, chunk) for stage, found in names.items() for chunk in _chunks(found)]
    figure = matplotlib.figure.Figure(figsize=(3.2 * COLUMNS, 2.4 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), COLUMNS, squeeze=False)
    for axes_row, (stage, chunk) in zip(grid, rows, strict=True):
        for axes in axes_row[len(chunk) :]:
            axes.axis("off")
        for axes, name in zip(axes_row, chunk, strict=False):
            for curve in [name, *(other for other, home in TOGETHER.items() if home == name)]:
                _plot(axes, logs[stage], curve, curve)
            axes.set_title(f"{stage}: {name.replace('_', ' ')}", fontsize=9)
            axes.tick_params(labelsize=7)
            if len(axes.lines) > 1:
                axes.legend(fontsize=7)
    _save(figure, path)


def _plot(axes: Any, lines: Sequence[Line], name: str, label: str, along: str = "step") -> None:
    """Draw the values called `name`, where there are any."""
    points = [(line[along], line[name]) for line in lines if name in line]
    if points:
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else "", label=label)


def _save(figure: matplotlib.figure.Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def _panels(lines: Sequence[Line]) -> list[str]:
    found = dict.fromkeys(name for line in lines for name in line)
    return [name for name in found if name not in NOT_CURVES and TOGETHER.get(name) not in found]


def _chunks(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + COLUMNS] for start in range(0, len(names), COLUMNS)]
