"""Training logs as curves and as words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rcg.visual.figures import drawn

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes

Line = Mapping[str, float]
"""A line of a log: the values logged at one step."""
NOT_CURVES = {"step", "seconds", "lr"}
SHARED_PANELS = {"rep_fd_reference": "rep_fd", "rep_recall": "rep_precision", "rep_agreement_real": "rep_agreement",
                 "fd_at_end": "fd", "fd_judge_at_end": "fd_judge", "copies_pixels": "copies"}  # fmt: skip
"""Curves that are drawn into the panel of another one."""
COLUMNS = 5


def latest(lines: Sequence[Line]) -> dict[str, float]:
    """Merge the lines of a log into the latest value of each quantity."""
    return {name: value for line in lines for name, value in line.items()}


def quality(log: Line) -> str:
    """Describe the latest metrics of a stage in words."""
    words: list[str] = []

    def add(text: str, *names: str) -> None:
        if all(name in log for name in names):  # metrics of too few images are not there
            words.append(text.format(*(log[name] for name in names)))

    add("10-NN accuracy {:.1%}", "knn_accuracy")
    if "knn_accuracy" not in log:
        add("effective rank {:.1f}", "effective_rank")
        add("uniformity {:.2f}", "uniformity")
    add("PSNR {:.2f} dB", "psnr")
    add("SSIM {:.3f}", "ssim")
    add("code usage {:.1%}", "code_usage")
    add("perplexity {:.0f}", "perplexity")
    words += [f"{key} {log[key]:.3g}" for key in log if key.startswith(("rfid_", "encoder_fd"))]
    add("FD {:.4g}", "fd")
    add("FD {:.4g} by the judge", "fd_judge")
    add("copies {:.1%}", "copies")
    add("copies {:.1%} in pixels", "copies_pixels")
    add("rep-FD {:.3g} (reference {:.3g})", "rep_fd", "rep_fd_reference")
    add("precision {:.2f}", "rep_precision")
    add("recall {:.2f}", "rep_recall")
    add("novelty {:.2f}", "rep_novelty")
    add("class agreement {:.1%} (real {:.1%})", "rep_agreement", "rep_agreement_real")
    words += [f"{key.replace('_', ' ')} {log[key]:.4g}" for key in log if key.startswith("validation_")]
    return ", ".join(words)


def draw_together(logs: Mapping[str, Sequence[Line]], path: Path, along: str = "step") -> None:
    """Write a PNG with one panel per quantity, and in it one curve per log; quantities without a curve get none.

    Args:
        logs: lines of each log, by its label.
        path: of the PNG; it is not written where there is no curve.
        along: the quantity on the x-axis.
    """
    names = list(dict.fromkeys(name for lines in logs.values() for name in _panels(lines, along)))
    rows = _chunks(names)
    if not rows:
        path.unlink(missing_ok=True)
        return
    with drawn(path, 4.4 * len(rows[0]), 3.4 * len(rows)) as figure:
        panels = figure.subplots(len(rows), len(rows[0]), squeeze=False).flatten()
        for panel, name in zip(panels, names, strict=False):
            for label, lines in logs.items():
                _plot(panel, lines, name, label, along)
            panel.set_title(name.replace("_", " "), fontsize=9)
            panel.set_xlabel(along, fontsize=7)
            panel.tick_params(labelsize=7)
            panel.legend(fontsize=7)
        for panel in panels[len(names) :]:
            panel.axis("off")


def draw_curves(logs: Mapping[str, Sequence[Line]], path: Path) -> None:
    """Write a PNG with the curves of all stages over steps; a stage starts a new row of panels.

    Args:
        logs: lines of each stage's log, which hold `step` and some values.
        path: of the PNG; it is not written where there is no curve.
    """
    rows = [(stage, chunk) for stage, lines in logs.items() for chunk in _chunks(_panels(lines, "step"))]
    if not rows:
        path.unlink(missing_ok=True)
        return
    columns = max(len(names) for _, names in rows)
    with drawn(path, 3.2 * columns, 2.4 * len(rows)) as figure:
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for panels, (stage, names) in zip(grid, rows, strict=True):
            for panel in panels[len(names) :]:
                panel.axis("off")
            for panel, name in zip(panels, names, strict=False):
                for curve in [name, *(other for other, home in SHARED_PANELS.items() if home == name)]:
                    _plot(panel, logs[stage], curve, curve.replace("_", " "))
                panel.set_title(f"{stage}: {name.replace('_', ' ')}", fontsize=9)
                panel.tick_params(labelsize=7)
                if len(panel.lines) > 1:
                    panel.legend(fontsize=7)


class Expected(NamedTuple):
    """A metric of a stage over its training, and where it is going.

    Attributes:
        points: minutes and values so far.
        curve: minutes and values of the expected curve, up to the end of the training; empty: not known.
    """

    points: Sequence[tuple[float, float]]
    curve: Sequence[tuple[float, float]]


def draw_expected(metrics: Mapping[str, Expected], title: str, path: Path) -> None:
    """Write a PNG of metrics against minutes, each with its expected curve, a dashed line.

    Args:
        metrics: by their labels; without any, no PNG is written.
        title: of the drawing.
        path: of the PNG.
    """
    if not metrics:
        path.unlink(missing_ok=True)
        return
    with drawn(path, 6, 3.6) as figure:
        panel = figure.subplots()
        for label, metric in metrics.items():
            (line,) = panel.plot(*zip(*metric.points, strict=True), marker="o", label=label)
            if metric.curve:
                panel.plot(*zip(*metric.curve, strict=True), "--", color=line.get_color(), label=f"{label}, expected")
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("minutes of training", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=7)


def _plot(panel: Axes, lines: Sequence[Line], name: str, label: str, along: str = "step") -> None:
    """Draw the values called `name`, if there are any."""
    points = [(line[along], line[name]) for line in lines if name in line]
    if points:
        panel.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else "", label=label)


def _panels(lines: Sequence[Line], along: str) -> list[str]:
    """Return the quantities of a log that get a panel of their own: a curve needs two points."""
    counts = Counter(name for line in lines for name in line)
    names = [name for name, count in counts.items() if count > 1 and name not in (*NOT_CURVES, along)]
    return [name for name in names if SHARED_PANELS.get(name) not in names]


def _chunks(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + COLUMNS] for start in range(0, len(names), COLUMNS)]
