"""Labels for samples: one for all, one after another, or random; clusters as often as among the training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from rcg.core.errors import UserError
from rcg.core.rng import fold_seed
from rcg.encoding.clusters import GOLDEN, cluster_at

Assignment = Literal["balanced", "random"]


class LabelSet(NamedTuple):
    """The labels that a model can be conditioned on.

    Attributes:
        names: of the labels.
        counts: number of views of training images of each, for clusters; empty for classes.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...] = ()

    @classmethod
    def of_clusters(cls, counts: Sequence[int]) -> LabelSet:
        """Return the labels of clusters of so many views."""
        return cls(tuple(f"cluster {number}" for number in range(len(counts))), tuple(counts))

    def assign(self, indices: Sequence[int], assignment: Assignment, seed: int) -> list[int]:
        """Return a label for each sample.

        Args:
            indices: which samples.
            assignment: balanced: sample i is of class i modulo their number, clusters are spread evenly by frequency;
                random: of a label drawn from (seed, i).
            seed: of random labels.
        """
        if self.counts:
            if assignment == "balanced":
                shares = [index * GOLDEN for index in indices]
            else:
                shares = [fold_seed(seed, index, "label") / 2**63 for index in indices]
            return [cluster_at(self.counts, share % 1) for share in shares]
        numbers = indices if assignment == "balanced" else [fold_seed(seed, index, "label") for index in indices]
        return [number % len(self.names) for number in numbers]

    def checked(self, label: int) -> int:
        """Return a label; raises `UserError` if it is out of range."""
        if not 0 <= label < len(self.names):
            last = len(self.names) - 1
            raise UserError(f"class {label} is out of range: classes are 0 ({self.names[0]}) to {last}")
        return label
