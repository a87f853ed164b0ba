"""The logs of a run as pictures: losses and metrics over steps, one row for each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.figure

from rcg.checkpoint import atomic

Line = Mapping[str, float]
NOT_CURVES = {"step", "seconds", "lr"}
TOGETHER = {"rep_fd_floor": "rep_fd", "rep_recall": "rep_precision", "rep_agreement_real": "rep_agreement"}
"""What is drawn into the panel of something else."""
COLUMNS = 5


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
                points = [(line["step"], line[curve]) for line in logs[stage] if curve in line]
                if points:
                    axes.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else "", label=curve)
            axes.set_title(f"{stage}: {name.replace('_', ' ')}", fontsize=9)
            axes.tick_params(labelsize=7)
            if len(axes.lines) > 1:
                axes.legend(fontsize=7)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def _panels(lines: Sequence[Line]) -> list[str]:
    found = dict.fromkeys(name for line in lines for name in line)
    return [name for name in found if name not in NOT_CURVES and TOGETHER.get(name) not in found]


def _chunks(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + COLUMNS] for start in range(0, len(names), COLUMNS)]
