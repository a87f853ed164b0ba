"""Directions in the space of representations along which one property of images changes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rcg.core import checkpoint
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.metrics.probe import LinearProbe

KIND = "direction"


@dataclass(frozen=True)
class Direction:
    """A direction of z.

    Attributes:
        name: of the property that changes along it.
        vector: `(D,)`, of length 1.
        space: the space of z.
        quality: how well it is known, in words.
    """

    name: str
    vector: Tensor
    space: Space
    quality: str = ""

    def move(self, z: Tensor, strength: float | Tensor) -> Tensor:
        """Return z + strength sqrt(D) w for `z` `(B, D)` (Diffusion Autoencoders): 0.3 is a visible edit."""
        return z + strength * math.sqrt(z.shape[1]) * self.vector.to(z)

    def score(self, z: Tensor) -> Tensor:
        """Return how much of the property `z` `(B, D)` has, `(B,)`: `move` by a strength raises it by that strength."""
        return z @ self.vector.to(z) / math.sqrt(z.shape[1])

    def without(self, others: Sequence[Direction]) -> Direction:
        """Return the part of the direction along which the properties of `others` stay as they are.

        Raises:
            UserError: nothing is left of it.
        """
        if not others:
            return self
        basis, _ = torch.linalg.qr(torch.stack([other.vector for other in others], dim=1).double())
        rest = self.vector.double() - basis @ (basis.T @ self.vector.double())
        names = ", ".join(other.name for other in others)
        if rest.norm() < 1e-4:
            raise UserError(f"nothing of the direction {self.name} is left without {names}: leave one of them out")
        return replace(self, vector=_unit(rest), quality=f"{self.quality}; without {names}")

    @property
    def file_name(self) -> str:
        """The name as that of a file: nothing in it leads to another folder."""
        return re.sub(r"[^\w .()+=,-]", "-", self.name).strip(". ")[:100] or "unnamed"

    def save(self, path: Path) -> None:
        """Write the direction as a safetensors file."""
        facts = Facts(data=self.space, details={"quality": self.quality})
        checkpoint.save(path, Part(KIND, {"name": self.name}, facts, {"vector": self.vector}))

    @classmethod
    def load(cls, path: Path, space: Space) -> Direction:
        """Read a direction of a run's space.

        Raises:
            UserError: the file is no direction, or one of another space.
        """
        part = checkpoint.load(path, KIND)
        if part.facts.data != space:
            raise UserError(f"{path} is a direction of {part.facts.data}, but the run has {space}: fit it again here")
        name, vector = part.config.get("name"), part.tensors.get("vector")
        if not isinstance(name, str) or vector is None or vector.shape != space.shape or vector.dtype != torch.float32:
            raise UserError(f"{path} must hold a name and a tensor 'vector' {space.shape} of float32: fit it again")
        return cls(name, vector, space, str(part.facts.details.get("quality", "")))


def fit_direction(name: str, z: Tensor, values: Tensor, space: Space) -> Direction:
    """Find the direction along which a property changes, from examples.

    Args:
        name: of the property.
        z: representations `(N, D)`.
        values: the property of each, `(N,)`: 0 and 1 (logistic regression), or any numbers (ridge regression).
        space: the space of z.

    Returns:
        The direction of growing values; `quality` states the number of examples and, by cross-validation, the accuracy
        (of 0 and 1, balanced over the two), or the share of the variance that is explained.

    Raises:
        UserError: there are fewer than four examples, or fewer than two with the property or without it.
    """
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score

    distinct, counts = values.unique(return_counts=True)
    is_binary = set(distinct.tolist()) <= {0, 1}
    rarest = int(counts.min()) if is_binary else len(values) // 2
    if len(values) < 4 or len(distinct) < 2 or rarest < 2:
        raise UserError(
            f"the attribute {name} has {len(values)} example(s) of {len(distinct)} value(s): give at least two with it "
            f"and two without, or four numbers"
        )
    # Each fold has two numbers at least, or an example of both kinds.
    splits = min(5, rarest)
    if is_binary:
        positive = int(values.sum())
        folds = StratifiedKFold(splits, shuffle=True, random_state=0)
        judge, scoring = LogisticRegression(C=0.1, max_iter=300, class_weight="balanced"), "balanced_accuracy"
        probe = LinearProbe.fit(z, values.long(), standardize=True)
        vector = probe.weight[1] - probe.weight[0]
        figure, examples = "balanced accuracy", f"{positive} of {len(values)} examples with it"
    else:
        folds = KFold(splits, shuffle=True, random_state=0)
        judge, scoring = RidgeCV(alphas=(1.0, 10.0, 100.0, 1000.0)), "r2"
        vector = torch.from_numpy(judge.fit(z.numpy(), values.numpy()).coef_)
        figure, examples = "explained variance", f"{len(values)} examples"
    score = cross_val_score(judge, z.numpy(), values.numpy(), cv=folds, scoring=scoring).mean()
    return Direction(name, _unit(vector), space, f"{figure} {score:.3g} (cross-validated), {examples}")


def principal_directions(z: Tensor, count: int, space: Space) -> list[Direction]:
    """Return the `count` directions along which `z` `(N, D)` varies most, strongest first.

    Raises:
        UserError: there are not so many.
    """
    from sklearn.decomposition import PCA

    if count > min(z.shape):
        raise UserError(
            f"{len(z)} representations of width {z.shape[1]} have at most {min(z.shape)} principal directions"
        )
    pca = PCA(count, random_state=0).fit(z.double().numpy())
    return [
        Direction(f"component {i + 1}", _unit(torch.from_numpy(row)), space, f"{share:.1%} of the variance")
        for i, (row, share) in enumerate(zip(pca.components_, pca.explained_variance_ratio_, strict=True))
    ]


def _unit(vector: Tensor) -> Tensor:
    return (vector / vector.norm()).float()
