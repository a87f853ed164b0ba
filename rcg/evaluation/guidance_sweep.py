"""How figures change with the scale of guidance: one evaluation for each scale, in one table and one picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rcg.core.checkpoint import atomic
from rcg.core.errors import UserError
from rcg.evaluation.evaluate import Evaluation
from rcg.evaluation.report import Report
from rcg.evaluation.samples import Generated, key
from rcg.evaluation.scores import Figure
from rcg.visual.curves import draw_together
from rcg.visual.grids import save_rows

NAME, CURVES, SAMPLES = "guidance", "guidance.png", "samples.png"
SHOWN = 16
"""Samples of each scale in the picture."""


class Sweep(NamedTuple):
    """What was found at each scale of guidance.

    Attributes:
        reports: by the scales, in their order.
        distances: the views, and the distances in their features, by which a scale may be chosen.
    """

    reports: Mapping[float, Report]
    distances: list[tuple[str, str]]

    def rows(self) -> Iterator[list[str]]:
        """Yield a row for each figure that the scale changes: its name, the space, a value at each scale, what is good.

        Figures that are the same at all scales, those of held-out images, are left out.
        """
        for space, name in dict.fromkeys((f.space, f.name) for report in self.reports.values() for f in report.figures):
            found = [_figure(report, space, name) for report in self.reports.values()]
            there = [figure for figure in found if figure is not None]
            if len({figure.value for figure in there}) > 1:
                cells = ["" if figure is None else f"{figure.value:.4g}" for figure in found]
                yield [name, space, *cells, there[0].good]

    def best(self) -> Iterator[str]:
        """Say for each distance at which scale it is lowest."""
        for space, name in self.distances:
            found = {scale: _figure(report, space, name) for scale, report in self.reports.items()}
            values = {scale: figure.value for scale, figure in found.items() if figure is not None}
            if values:
                scale = min(values, key=lambda scale: values[scale])
                # Below 1 there is no guidance to try.
                edge = ", at the edge of what was tried" if scale in (min(values), max(values)) and scale != 1 else ""
                yield f"{name} ({space}) is lowest at a guidance of {scale:g}{edge}: {values[scale]:.4g}"

    def head(self) -> list[str]:
        """Name the columns of `rows`."""
        return ["figure", "features", *(f"{scale:g}" for scale in self.reports), "good is"]

    def text(self, title: str) -> str:
        """Return table, pictures and conclusions as Markdown."""
        lines = [f"# {title}", "", *(f"- {line}" for line in self.best()), ""]
        lines += [f"| {' | '.join(cells)} |" for cells in (self.head(), ["---"] * len(self.head()), *self.rows())]
        lines += ["", f"![figures over guidance]({CURVES})\n", f"![first samples at each scale]({SAMPLES})\n"]
        return "\n".join(lines)

    def write(self, title: str, folder: Path) -> None:
        """Write guidance.md, guidance.json and guidance.png."""
        values = {"title": title, "best": list(self.best()), "head": self.head(), "rows": list(self.rows())}
        for kind, text in ((".md", self.text(title)), (".json", json.dumps(values, indent=1) + "\n")):
            with atomic(folder / f"{NAME}{kind}") as temporary:
                temporary.write_text(text)
        draw_together(self._curves(), folder / CURVES, NAME)

    def _curves(self) -> dict[str, list[dict[str, float]]]:
        """Return for each space what changes with the scale, as lines of a log."""
        changing = {(name, space) for name, space, *_ in self.rows()}
        return {
            space: [
                {NAME: scale}
                | {f.name: f.value for f in report.figures if f.space == space and (f.name, space) in changing}
                for scale, report in self.reports.items()
            ]
            for space in dict.fromkeys(space for _, space in changing)
        }


def _figure(report: Report, space: str, name: str) -> Figure | None:
    return next((figure for figure in report.figures if (figure.space, figure.name) == (space, name)), None)


def at_each(evaluation: Evaluation, scales: list[float]) -> dict[float, Evaluation]:
    """Return the evaluation at each of several scales of guidance.

    Raises:
        UserError: there is nothing that guidance could change.
    """
    samples = evaluation.samples
    if not isinstance(samples, Generated):
        raise UserError("several --guidance draw samples at each scale, but files are judged: name the folder of a run")
    if samples.pipeline.generator.config.condition == "none":
        raise UserError(
            f"several --guidance compare scales, but {evaluation.origin['generator']} is told nothing that it could be "
            f"guided towards: choose another with --generator"
        )
    return {
        scale: replace(evaluation, samples=replace(samples, how=samples.how | {"guidance": scale})) for scale in scales
    }


def name_of(evaluations: Mapping[float, Evaluation]) -> str:
    """Return a name for the sweep's folder that follows from everything that decides its figures."""
    first = next(iter(evaluations.values()))
    decided = key([evaluation.name for evaluation in evaluations.values()])
    return f"{NAME}-{first.origin['generator']}-{len(first.samples)}-{decided[:8]}"


def draw_samples(evaluations: Mapping[float, Evaluation], title: str, path: Path) -> None:
    """Write a PNG with a row of the first samples at each scale; sample i begins at the same noise in all of them."""
    rows = {}
    for scale, evaluation in evaluations.items():
        batches: Any = evaluation.samples.batches(range(min(SHOWN, len(evaluation.samples))))
        rows[f"guidance {scale:g}"] = next(batches).images.cpu() / 255
    save_rows(rows, title, path)
