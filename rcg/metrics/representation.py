"""Quality of a representation: k-NN and linear accuracy, alignment, uniformity, effective rank."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg.metrics.probe import LinearProbe


def knn_accuracy(
    train: Tensor, train_labels: Tensor, validation: Tensor, validation_labels: Tensor, k: int = 10
) -> float:
    """Return the share of `validation` `(M, D)` whose `k` nearest of `train` `(N, D)` by cosine vote for its label."""
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(min(k, len(train)), metric="cosine")
    classifier.fit(train.numpy(), train_labels.numpy())
    return float(classifier.score(validation.numpy(), validation_labels.numpy()))


def linear_accuracy(train: Tensor, train_labels: Tensor, validation: Tensor, validation_labels: Tensor) -> float:
    """Return the share of `validation` `(M, D)` that a linear probe of standardized `train` `(N, D)` gets right."""
    return LinearProbe.fit(train, train_labels, standardize=True).accuracy(validation, validation_labels)


def nearest_by_cosine(queries: Tensor, others: Tensor, k: int) -> Tensor:
    """Return the positions `(M, k)` of the `k` of `others` `(N, D)` most similar to each of `queries` `(M, D)`."""
    similarity = F.normalize(queries) @ F.normalize(others).T
    return similarity.topk(min(k, len(others))).indices


def alignment(a: Tensor, b: Tensor) -> float:
    """Return the mean squared distance of two views `(N, D)` of the same images on the sphere, in [0, 4]; low is good.

    Wang and Isola, ICML 2020, eq. for L_align with alpha = 2.
    """
    return float((F.normalize(a) - F.normalize(b)).square().sum(1).mean())


def uniformity(x: Tensor) -> float | None:
    """Return log E exp(-2 |x - y|^2) over pairs of `x` `(N, D)` on the sphere, in [-8, 0]; low is good (t = 2).

    Fewer than two vectors have no pair, and no uniformity.
    """
    if len(x) < 2:
        return None
    return float(torch.pdist(F.normalize(x)).square().mul(-2).exp().mean().log())


def spectrum(x: Tensor) -> Tensor:
    """Return the singular values `(min(N, D),)` of centered `x` `(N, D)`, largest first, as shares of their sum.

    They are zeros where all vectors are equal.
    """
    values = torch.linalg.svdvals((x - x.mean(0)).double())
    return values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)


def effective_rank(x: Tensor) -> float:
    """Return exp of the entropy of the normalized singular values of centered `x` `(N, D)` (Roy and Vetterli, 2007).

    It is 1, the least, where all vectors are equal.
    """
    return float(torch.special.entr(spectrum(x)).sum().exp())
