"""What an evaluation found, for people and for programs: report.md, report.json, and samples beside training images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rcg.core.checkpoint import atomic
from rcg.evaluation.samples import Source
from rcg.evaluation.scores import Figure
from rcg.metrics.memorization import Memorization
from rcg.visual.grids import save_gallery

SHOWN = 8
"""Samples beside their nearest training images."""


class Report(NamedTuple):
    """Everything that an evaluation says.

    Attributes:
        facts: what was compared with what, and how.
        figures: the numbers.
        warnings: sentences about what is doubtful or missing.
        pictures: names of pictures beside the report.
    """

    facts: dict[str, Any]
    figures: list[Figure]
    warnings: list[str]
    pictures: list[str]

    def write(self, folder: Path) -> None:
        """Write report.json and report.md."""
        figures = [figure._asdict() | {"spread": figure.spread and figure.spread._asdict()} for figure in self.figures]
        values = {**self.facts, "figures": figures, "warnings": self.warnings}
        for name, text in (("report.json", json.dumps(values, indent=1) + "\n"), ("report.md", self.text())):
            with atomic(folder / name) as temporary:
                temporary.write_text(text)

    def text(self) -> str:
        """Return the report as Markdown."""
        lines = [f"# {self.facts['samples'].get('run') or self.facts['samples']['images']}", ""]
        lines += [f"- {name}: {words(value)}" for name, value in self.facts.items()]
        lines += ["", "| figure | value | mean ± deviation | features | good is |", "|---|---|---|---|---|"]
        lines += [_row(figure) for figure in self.figures]
        lines += [""] + [f"**Mind:** {warning}.\n" for warning in self.warnings]
        lines += [f"![samples beside their nearest training images]({name})\n" for name in self.pictures]
        return "\n".join(lines)


def _row(figure: Figure) -> str:
    spread = spread_words(figure.spread and figure.spread._asdict())
    return f"| {figure.name} | {figure.value:.5g} | {spread} | {figure.space} | {figure.good} |"


def spread_words(spread: Mapping[str, float] | None) -> str:
    """Write mean and deviation, or nothing."""
    return "" if spread is None else f"{spread['mean']:.5g} ± {spread['deviation']:.2g}"


def words(value: Any) -> str:
    """Write nested facts on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {words(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list):
        return "; ".join(map(words, value)) if value and isinstance(value[0], dict) else "-".join(map(str, value))
    return f"({value})" if " " in str(value) else str(value)


def draw_neighbors(samples: Source, train: Source, found: Memorization, space: str, path: Path) -> None:
    """Write a PNG of the samples that are closest to a training image, each beside its nearest ones."""
    closest = found.distances[:, 0].argsort()[:SHOWN].tolist()
    images, captions = [], []
    for index in closest:
        near, distances = found.nearest[index].tolist(), found.distances[index].tolist()
        images += [_image(samples, index), *(_image(train, position) for position in near)]
        captions += [
            f"sample {index}",
            *(f"{position}: {far:.3g}" for position, far in zip(near, distances, strict=True)),
        ]
    columns = 1 + found.nearest.shape[1]
    title = f"closest samples | their nearest training images, Euclidean distance in {space}"
    save_gallery(torch.stack(images), captions, title, path, columns=columns)


def _image(source: Source, position: int) -> torch.Tensor:
    return next(iter(source.batches([position]))).images[0].cpu() / 255
