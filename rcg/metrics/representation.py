"""Whether a representation is worth modeling: neighbors, alignment, uniformity, effective rank."""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F


def knn_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 10) -> float:
    """Return the share of `test` `(M, D)` whose `k` nearest of `train` `(N, D)` by cosine vote for its label."""
    classifier = KNeighborsClassifier(min(k, len(train)), metric="cosine")
    classifier.fit(train.numpy(), train_labels.numpy())
    return float(classifier.score(test.numpy(), test_labels.numpy()))


def linear_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Return the share of `test` `(M, D)` that a logistic regression on standardized `train` `(N, D)` gets right."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    probe.fit(train.numpy(), train_labels.numpy())
    return float(probe.score(test.numpy(), test_labels.numpy()))


def nearest(queries: Tensor, among: Tensor, k: int) -> Tensor:
    """Return the positions `(M, k)` of the `k` vectors of `among` `(N, D)` nearest to each of `queries` by cosine."""
    similarity = F.normalize(queries) @ F.normalize(among).T
    return similarity.topk(min(k, len(among))).indices


def alignment(a: Tensor, b: Tensor) -> float:
    """Return the mean squared distance of two views `(N, D)` of the same images on the sphere, in [0, 4]; low is good.

    Wang and Isola, ICML 2020, eq. for L_align with alpha = 2.
    """
    return float((F.normalize(a) - F.normalize(b)).square().sum(1).mean())


def uniformity(x: Tensor) -> float:
    """Return log E exp(-2 |x - y|^2) over pairs of `x` `(N, D)` on the sphere, in [-8, 0]; low is good (t = 2)."""
    return float(torch.pdist(F.normalize(x)).square().mul(-2).exp().mean().log())


def spectrum(x: Tensor) -> Tensor:
    """Return the singular values `(min(N, D),)` of centerd `x` `(N, D)`, largest first, as shares of their sum."""
    values = torch.linalg.svdvals((x - x.mean(0)).double())
    return values / values.sum()


def effective_rank(x: Tensor) -> float:
    """Return exp of the entropy of the normalized singular values of centerd `x` `(N, D)` (Roy and Vetterli, 2007)."""
    return float(torch.special.entr(spectrum(x)).sum().exp())
