"""Class-conditional metrics of generated representations: agreement with a probe, and rep-FD, per class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from rcg.metrics.frechet import frechet_distance


class ClassRow(NamedTuple):
    """The metrics of one class.

    Attributes:
        name: of the class.
        generated: number of generated z.
        compared: number of them, and of real z, of which both distances are.
        agreement: share of the generated z that the probe assigns to the class.
        agreement_real: share of the class's validation z that the probe assigns to it; None: there are none.
        rep_fd: Frechet distance of generated z to real z; None: there are too few of either.
        reference_fd: Frechet distance of as many real z to the same real z: that of a perfect generator.
    """

    name: str
    generated: int
    compared: int
    agreement: float
    agreement_real: float | None
    rep_fd: float | None
    reference_fd: float | None


def per_class(
    generated: Tensor,
    requested: Tensor,
    train: Tensor,
    train_labels: Tensor,
    validation: Tensor,
    validation_labels: Tensor,
    classify: Callable[[Tensor], Tensor],
    names: Sequence[str],
) -> list[ClassRow]:
    """Evaluate generated z class by class.

    rep-FD compares m generated z of a class with one half of its training z; the reference distance compares m z of the
    other half with the same; m is the smaller of the two numbers. There is neither for m below 2.

    Args:
        generated: z `(G, D)`.
        requested: the classes `(G,)` that they were conditioned on.
        train: z of training images `(N, D)`.
        train_labels: their classes `(N,)`.
        validation: z of images that the classifier was not fitted to `(M, D)`.
        validation_labels: their classes `(M,)`.
        classify: maps z `(B, D)` to classes `(B,)`.
        names: of the classes.
    """
    agrees = (classify(generated) == requested).float()
    agrees_real = (classify(validation) == validation_labels).float()
    rows = []
    for label in requested.unique().tolist():
        samples = generated[requested == label]
        first, second = train[train_labels == label].tensor_split(2)
        count = min(len(samples), len(first), len(second))
        agreement = float(agrees[requested == label].mean())
        real = agrees_real[validation_labels == label]
        agreement_real = float(real.mean()) if len(real) else None
        rep_fd, reference_fd = None, None
        if count > 1:
            rep_fd, reference_fd = (frechet_distance(z[:count], second) for z in (samples, first))
        compared = count if count > 1 else 0
        rows.append(ClassRow(names[label], len(samples), compared, agreement, agreement_real, rep_fd, reference_fd))
    return rows


HEAD = ("class", "generated", "probe agrees", "on real z", "rep-FD", "reference", "of so many z")


def table(rows: Sequence[ClassRow]) -> list[list[str]]:
    """Return the cells of a table under `HEAD`; its last row is the mean over the classes that have the value."""
    values = [(row.agreement, row.agreement_real, row.rep_fd, row.reference_fd) for row in rows]
    cells = [
        [row.name, str(row.generated), *_cells(*numbers), str(row.compared or "")]
        for row, numbers in zip(rows, values, strict=True)
    ]
    means = [_mean(column) for column in zip(*values, strict=True)]
    return [*cells, ["mean", str(sum(row.generated for row in rows)), *_cells(*means), ""]]


def _cells(agreement: float | None, agreement_real: float | None, *distances: float | None) -> list[str]:
    """Write values, nothing for those that there are not."""
    shares = ["" if share is None else f"{share:.1%}" for share in (agreement, agreement_real)]
    return shares + ["" if distance is None else f"{distance:.3f}" for distance in distances]


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
