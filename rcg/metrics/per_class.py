"""Whether generated representations of a class are of that class: a linear probe's opinion, and rep-FD per class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from rcg.metrics.frechet import frechet_distance


class ClassRow(NamedTuple):
    """One class: what a probe says of generated and of real z that it never saw, and rep-FD beside its floor."""

    name: str
    generated: int
    agreement: float
    agreement_real: float
    rep_fd: float
    rep_fd_floor: float


def per_class(
    generated: Tensor,
    asked: Tensor,
    real: Tensor,
    labels: Tensor,
    held_out: Tensor,
    held_out_labels: Tensor,
    classify: Callable[[Tensor], Tensor],
    names: Sequence[str],
) -> list[ClassRow]:
    """Judge generated z class by class.

    rep-FD compares m generated z of a class with one half of its real ones, and its floor m of the other half with the
    same; m is the smaller of the two numbers. It is nan for classes with fewer than two of either.

    Args:
        generated: `(G, D)`.
        asked: the class asked for `(G,)`.
        real: z of training images `(N, D)`.
        labels: their classes `(N,)`.
        held_out: z of images that the classifier never saw `(M, D)`.
        held_out_labels: their classes `(M,)`.
        classify: maps z `(B, D)` to classes `(B,)`.
        names: of the classes.
    """
    right, right_real = classify(generated) == asked, classify(held_out) == held_out_labels
    rows = []
    for label in asked.unique().tolist():
        drawn, own = generated[asked == label], real[labels == label]
        first, second = own.tensor_split(2)
        count = min(len(drawn), len(first), len(second))
        distance, floor = math.nan, math.nan
        if count > 1:
            distance, floor = (frechet_distance(z[:count], second) for z in (drawn, first))
        shares = right[asked == label].float().mean(), right_real[held_out_labels == label].float().mean()
        agreement, agreement_real = (float(share) for share in shares)
        rows.append(ClassRow(names[label], len(drawn), agreement, agreement_real, distance, floor))
    return rows


def table(rows: Sequence[ClassRow]) -> str:
    """Return a Markdown table, with the mean over the classes as its last line."""
    lines = ["| class | generated | probe agrees | on real z | rep-FD | floor |", "|---|---|---|---|---|---|"]
    means = [sum(column) / len(rows) for column in list(zip(*rows, strict=True))[2:]]
    mean = ClassRow("all", sum(row.generated for row in rows), *means)
    lines += [
        f"| {row.name} | {row.generated} | {row.agreement:.1%} | {row.agreement_real:.1%} | {row.rep_fd:.3f} "
        f"| {row.rep_fd_floor:.3f} |"
        for row in (*rows, mean)
    ]
    return "\n".join(lines) + "\n"
