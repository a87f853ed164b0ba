"""The report of an evaluation, for people and for programs: report.md, report.json, samples beside training images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rcg.evaluation.samples import ImageSource
from rcg.evaluation.scores import Score
from rcg.metrics.memorization import Memorization
from rcg.visual.documents import Document, read_json, typed
from rcg.visual.grids import save_gallery

CLOSEST_SAMPLES = 8
"""Samples that are drawn beside their nearest training images."""
HEAD = ("metric", "value ± std", "std over", "features", "ideal")
"""Columns of the table of scores."""


class Origin(NamedTuple):
    """The run that samples come from.

    Attributes:
        run: its folder.
        generator: name of the generator's folder in it.
        arm: name of the arm of a comparison.
    """

    run: Path
    generator: str
    arm: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-serializable values."""
        return {name: str(value) for name, value in self._asdict().items() if value is not None}


class Report(NamedTuple):
    """The result of an evaluation.

    Attributes:
        title: the run, or the files.
        num: number of samples.
        samples: how they were generated, or where they are.
        reference: what they were compared with.
        extractors: the networks in whose features they were compared.
        resamples: for stds.
        cost: seconds, processes and device of the features.
        scores: the numbers.
        warnings: sentences about what is doubtful or missing.
        searched: names of the features in which samples were searched among training images.
    """

    title: str
    num: int
    samples: dict[str, Any]
    reference: dict[str, Any]
    extractors: list[dict[str, Any]]
    resamples: int
    cost: dict[str, Any]
    scores: list[Score]
    warnings: list[str]
    searched: Sequence[str] = ()

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a report.json.

        Raises:
            UserError: it is damaged, or was written by another version.
        """
        return typed(cls, read_json(path), path)

    @property
    def document(self) -> Document:
        """The report for people."""
        names = ("samples", "reference", "extractors", "resamples", "cost")
        shown = "closest samples, each beside its nearest training images, in the features of "
        return Document(
            title=f"Evaluation of {self.title}: {', '.join(self._subject())}",
            head=HEAD,
            rows=[[score.name, score.text, score.over, score.space, score.ideal] for score in self.scores],
            warnings=self.warnings,
            pictures={neighbors_picture(space): f"{shown}{space}" for space in self.searched},
            settings={name: value for name, value in self._asdict().items() if name in names},
        )

    def _subject(self) -> Iterator[str]:
        """Yield what tells this evaluation from others of the same run."""
        if "generator" in self.samples:
            yield str(self.samples["generator"])
        yield f"{self.num} sample{'' if self.num == 1 else 's'}"
        if self.samples.get("guidance"):
            yield f"guidance {self.samples['guidance']['scale']:g}"

    def write(self, folder: Path) -> None:
        """Write report.json and report.md; the pictures of the searched spaces lie in the same folder."""
        values = self._asdict() | {"scores": [score._asdict() for score in self.scores]}
        self.document.write(folder, "report", values)


def neighbors_picture(space: str) -> str:
    """Return the name of the picture of the samples closest to training images in some features."""
    return f"neighbors-{space}.png"


def draw_neighbors(
    samples: ImageSource, train: ImageSource, memorization: Memorization, space: str, path: Path
) -> None:
    """Write a PNG of the samples that are closest to a training image, each beside its nearest ones.

    Args:
        samples: the samples.
        train: the training images.
        memorization: the nearest training images of each sample, and their distances.
        space: name of the features in which distances were measured.
        path: of the picture.
    """
    images, captions = [], []
    for index in memorization.distances[:, 0].argsort()[:CLOSEST_SAMPLES].tolist():
        positions = memorization.nearest[index].tolist()
        distances = memorization.distances[index].tolist()
        images += [_image(samples, index), *(_image(train, position) for position in positions)]
        captions.append(f"sample {index}")
        captions += [f"{position}: {distance:.3g}" for position, distance in zip(positions, distances, strict=True)]
    columns = 1 + memorization.nearest.shape[1]
    title = f"closest samples | their nearest training images, Euclidean distance in {space}"
    save_gallery(torch.stack(images), captions, title, path, columns=columns)


def _image(source: ImageSource, position: int) -> torch.Tensor:
    return next(iter(source.batches([position]))).images[0].cpu() / 255
