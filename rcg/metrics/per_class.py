"""Class-conditional metrics of generated representations: agreement with a probe, and rep-FD, per class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from rcg.metrics.frechet import frechet_distance


class ClassRow(NamedTuple):
    """The metrics of one class.

    Attributes:
        name: of the class.
        generated: number of generated z.
        agreement: share of the generated z that the probe assigns to the class.
        agreement_real: share of the class's validation z that the probe assigns to it.
        rep_fd: Frechet distance of generated z to real z.
        reference_fd: Frechet distance of as many real z to the same real z: that of a perfect generator.
    """

    name: str
    generated: int
    agreement: float
    agreement_real: float
    rep_fd: float
    reference_fd: float


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
    other half with the same; m is the smaller of the two numbers. Both are nan for classes with fewer than two of
    either.

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
        agreement_real = float(agrees_real[validation_labels == label].mean())
        rep_fd, reference_fd = math.nan, math.nan
        if count > 1:
            rep_fd, reference_fd = (frechet_distance(z[:count], second) for z in (samples, first))
        rows.append(ClassRow(names[label], len(samples), agreement, agreement_real, rep_fd, reference_fd))
    return rows


def table(rows: Sequence[ClassRow]) -> str:
    """Return a Markdown table; its last row is the mean over the classes."""
    lines = ["| class | generated | probe agrees | on real z | rep-FD | reference |", "|---|---|---|---|---|---|"]
    means = [sum(column) / len(rows) for column in list(zip(*rows, strict=True))[2:]]
    mean = ClassRow("all", sum(row.generated for row in rows), *means)
    lines += [
        f"| {row.name} | {row.generated} | {row.agreement:.1%} | {row.agreement_real:.1%} | {row.rep_fd:.3f} "
        f"| {row.reference_fd:.3f} |"
        for row in (*rows, mean)
    ]
    return "\n".join(lines) + "\n"
