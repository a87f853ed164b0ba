"""Scores over the scale of guidance: one evaluation for each scale, in one table and one picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator

from rcg.core.console import say
from rcg.core.errors import UserError
from rcg.evaluation.evaluate import Evaluation, evaluate
from rcg.evaluation.report import Report
from rcg.evaluation.samples import GeneratedImages, key
from rcg.evaluation.scores import find_score
from rcg.visual.curves import draw_together
from rcg.visual.documents import Document
from rcg.visual.grids import save_rows

NAME, CURVES, SAMPLES = "guidance", "guidance.png", "samples.png"
ROW_SAMPLES = 16
"""Samples of each scale in the picture."""


class GuidanceSweep(NamedTuple):
    """The reports at several scales of guidance.

    Attributes:
        title: of the report, the run and its generator.
        reports: by the scales, in their order.
        distances: the extractors, and the distances in their features, by which a scale may be chosen.
    """

    title: str
    reports: Mapping[float, Report]
    distances: list[tuple[str, str]]

    def rows(self) -> Iterator[list[str]]:
        """Yield a row for each score of the samples: its name, the space, a value at each scale, the ideal."""
        reports = self.reports.values()
        for space, name in dict.fromkeys((s.space, s.name) for report in reports for s in report.scores):
            scores = [find_score(report.scores, space, name) for report in reports]
            present = [score for score in scores if score is not None]
            if not present[0].is_reference:
                cells = ["" if score is None else score.text for score in scores]
                yield [name, space, *cells, present[0].ideal]

    def best(self) -> Iterator[str]:
        """Say for each distance at which scale it is lowest, and which scales are no different within its std.

        Of too few samples none is recommended: such a distance is lower where samples vary less, which is what
        guidance does to them.
        """
        for space, name in self.distances:
            found = {scale: find_score(report.scores, space, name) for scale, report in self.reports.items()}
            scores = {scale: score for scale, score in found.items() if score is not None}
            if not scores:
                continue
            if any(score.is_biased for score in scores.values()):
                yield f"{name} ({space}) cannot choose a guidance: it is of too few images"
                continue
            scale = min(scores, key=lambda scale: scores[scale].value)
            best = scores[scale]
            is_edge = scale in (min(scores), max(scores)) and scale != 1  # below 1 there is no guidance to try
            edge = ", at the edge of what was tried" if is_edge else ""
            yield f"{name} ({space}) is lowest at a guidance of {scale:g}{edge}: {best.text}"
            near = [f"{s:g}" for s in scores if s != scale and scores[s].value <= best.value + (best.std or 0)]
            if near:
                yield f"{name} ({space}) is no higher, within one std, at {', '.join(near)}"

    def warnings(self) -> list[str]:
        """Return what is doubtful or missing at any scale."""
        return list(dict.fromkeys(warning for report in self.reports.values() for warning in report.warnings))

    def write(self, folder: Path) -> None:
        """Write guidance.md, guidance.json and guidance.png."""
        document = Document(
            title=self.title,
            head=["metric", "features", *(f"{scale:g}" for scale in self.reports), "ideal"],
            rows=list(self.rows()),
            lines=[f"{line}." for line in self.best()],
            warnings=self.warnings(),
            pictures={CURVES: "scores over guidance", SAMPLES: "first samples at each scale"},
            drawn=[CURVES],
        )
        document.write(folder, NAME)
        draw_together(self._curves(), folder / CURVES, NAME)

    def _curves(self) -> dict[str, list[dict[str, float]]]:
        """Return for each space the scores of the samples, as lines of a log over scales."""
        names: dict[str, list[str]] = {}
        for name, space, *_ in self.rows():
            names.setdefault(space, []).append(name)
        return {
            space: [
                {NAME: scale} | {s.name: s.value for s in report.scores if s.space == space and s.name in shown}
                for scale, report in self.reports.items()
            ]
            for space, shown in names.items()
        }


def sweep_guidance(
    evaluation: Evaluation, scales: Sequence[float], out: Path, cache: Path, accelerator: Accelerator, save_images: bool
) -> None:
    """Evaluate at several scales of guidance; write and print at which of them the distances are lowest.

    Args:
        evaluation: samples of a run.
        scales: of guidance, rising.
        out: folder in which the sweep and each evaluation get folders of their own.
        cache: folder of the features.
        accelerator: the processes.
        save_images: whether samples are written as PNG files.

    Raises:
        UserError: there is nothing that guidance could change.
    """
    evaluations = at_each(evaluation, scales)
    reports = {}
    for number, (scale, guided) in enumerate(evaluations.items(), 1):
        say(f"[{number}/{len(evaluations)}] guidance {scale:g}")
        report = evaluate(guided, out / guided.name, cache, accelerator, save_images)
        if report is not None:
            reports[scale] = report
    if not accelerator.is_main_process:
        return

    assert evaluation.origin is not None
    generator, count = evaluation.origin.generator, len(evaluation.samples)
    digest = key([guided.name for guided in evaluations.values()])
    folder = out / f"{NAME}-{generator}-{count}-{digest[:8]}"
    title = f"Guidance of {generator}: {evaluation.origin.run}, {count} samples at each scale"
    distances = [(extractor.name, extractor.distance) for extractor in evaluation.extractors]
    sweep = GuidanceSweep(title, reports, distances)
    sweep.write(folder)
    _draw_samples(evaluations, title, folder / SAMPLES)
    say((folder / "guidance.md").read_text(encoding="utf-8"))
    say(f"look at {folder / CURVES} and {folder / SAMPLES}; then --guidance, or generator.guidance.scale")


def at_each(evaluation: Evaluation, scales: Sequence[float]) -> dict[float, Evaluation]:
    """Return the evaluation at each of several scales of guidance.

    Raises:
        UserError: there is nothing that guidance could change.
    """
    samples = evaluation.samples
    if not isinstance(samples, GeneratedImages) or evaluation.origin is None:
        raise UserError(
            "several --guidance generate samples at each scale, but files are evaluated: name the folder of a run"
        )
    if not samples.pipeline.can_guide:
        raise UserError(
            f"several --guidance compare scales, but {evaluation.origin.generator} has no condition to guide toward: "
            f"choose another with --generator, or a worse one with --weak"
        )
    options = {scale: replace(samples.options, guidance=scale) for scale in scales}
    for at_scale in options.values():
        samples.pipeline.check(at_scale, generates_z=samples.representations is None)
    return {scale: replace(evaluation, samples=replace(samples, options=options[scale])) for scale in scales}


def _draw_samples(evaluations: Mapping[float, Evaluation], title: str, path: Path) -> None:
    """Write a PNG with a row of the first samples at each scale; sample i begins at the same noise in all of them."""
    rows = {}
    for scale, evaluation in evaluations.items():
        positions = range(min(ROW_SAMPLES, len(evaluation.samples)))
        rows[f"guidance {scale:g}"] = next(evaluation.samples.batches(positions)).images.cpu() / 255
    save_rows(rows, title, path)
