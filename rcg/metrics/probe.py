"""The linear probe: a logistic regression on frozen representations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of representations, log p(y | z) = log softmax(z W^T + b).

    Attributes:
        weight: W `(K, D)`.
        bias: b `(K,)`; minus infinity for labels that were absent when it was fitted.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(cls, z: Tensor, labels: Tensor, standardize: bool = False, inverse_penalty: float = 0.1) -> LinearProbe:
        """Fit a logistic regression.

        Args:
            z: representations `(N, D)`.
            labels: `(N,)`, N at least 1; K is the largest label plus 1. Of a single class, the probe says it always.
            standardize: regress on standardized features; mean and std are folded into the weights.
            inverse_penalty: scikit-learn's C, of the squared weights.
        """
        present = labels.unique()
        if len(present) == 1:
            bias = torch.full((int(present) + 1,), -torch.inf)
            bias[present] = 0.0
            return cls(torch.zeros(len(bias), z.shape[1]), bias)

        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler(with_mean=standardize, with_std=standardize).fit(z.numpy())
        regression = LogisticRegression(C=inverse_penalty, max_iter=300).fit(
            scaler.transform(z.numpy()), labels.numpy()
        )
        coefficients, intercepts = regression.coef_, regression.intercept_
        if len(coefficients) == 1:  # for two classes scikit-learn returns the difference of their logits
            coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
            intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
        if standardize:
            coefficients = coefficients / scaler.scale_
            intercepts = intercepts - coefficients @ scaler.mean_

        classes = torch.from_numpy(regression.classes_).long()
        count = int(classes[-1]) + 1
        weight = torch.zeros(z.shape[1], count).T  # column-major like scikit-learn's, so that products round alike
        bias = torch.full((count,), -torch.inf)
        weight[classes] = torch.from_numpy(coefficients).float()
        bias[classes] = torch.from_numpy(intercepts).float()
        return cls(weight, bias)

    def log_probability(self, z: Tensor) -> Tensor:
        """Return log p(y | z) `(B, K)` for `z` `(B, D)`."""
        return F.log_softmax(z @ self.weight.to(z).T + self.bias.to(z), dim=1)

    def predict(self, z: Tensor) -> Tensor:
        """Return the most likely label `(B,)` of each of `z` `(B, D)`."""
        return self.log_probability(z).argmax(1)

    def accuracy(self, z: Tensor, labels: Tensor) -> float:
        """Return the share of `z` `(B, D)` whose label `(B,)` is predicted."""
        return float((self.predict(z) == labels).double().mean())
