"""Rejection sampling: what is accepted follows p(z | y)."""

import pytest
import torch

from rcg.core.errors import UserError
from rcg.core.rng import SampleNoise
from rcg.editing.few_shot import like_examples, rejection_sample


def gaussian(indices, attempt):
    return SampleNoise(0, indices, f"z {attempt}").normal((2,))


def test_accepted_samples_follow_the_conditional_distribution():
    # p(y | z) = sigmoid(3 z_0 + 1): moments of p(z | y) by quadrature.
    grid = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    weight = torch.exp(-grid.square() / 2) * torch.sigmoid(3 * grid + 1)
    mean = float((grid * weight).sum() / weight.sum())
    accepted = rejection_sample(gaussian, lambda z: torch.sigmoid(3 * z[:, 0] + 1), range(4000), seed=0)
    assert float(accepted.z[:, 0].mean()) == pytest.approx(mean, abs=0.04)
    assert float(accepted.z[:, 1].mean()) == pytest.approx(0, abs=0.05)
    share = float(weight.sum() * (grid[1] - grid[0])) / (2 * torch.pi) ** 0.5
    assert accepted.rate == pytest.approx(share, abs=0.02)


def test_a_sample_does_not_depend_on_its_batch():
    def probability(z):
        return torch.sigmoid(z[:, 0])

    together = rejection_sample(gaussian, probability, range(6), seed=1)
    alone = rejection_sample(gaussian, probability, [4], seed=1)
    assert torch.equal(together.z[4:5], alone.z)


@pytest.fixture
def kinds():
    """Draws z `(N, 32)` of one of ten kinds; those of kind 0 have the property."""
    generator = torch.Generator().manual_seed(0)
    centers = 3 * torch.randn(10, 32, generator=generator)
    loudness = 10 ** torch.linspace(-1, 1, 32)  # the examples need not tell which directions vary
    return lambda kind, count: loudness * (centers[kind] + torch.randn(count, 32, generator=generator))


@pytest.mark.parametrize("given", [0, 20])
def test_a_few_examples_and_many_without_label_tell_who_has_the_property(kinds, given):
    unlabeled = torch.cat([kinds(kind, 100) for kind in range(10)])
    probability = like_examples(kinds(0, 20), kinds(1, given), unlabeled)
    assert float(probability(kinds(0, 200)).mean()) > 0.9
    assert max(float(probability(kinds(kind, 200)).mean()) for kind in range(1, 10)) < 0.01


def test_what_more_likely_lacks_the_property_is_never_accepted():
    # Along one direction, so that all probabilities occur.
    generator = torch.Generator().manual_seed(0)
    unlabeled = torch.randn(1000, 4, generator=generator)
    accepted = like_examples(unlabeled[unlabeled[:, 0] > 1][:40], unlabeled[:0], unlabeled)(unlabeled)
    assert ((accepted == 0) | (accepted > 0.5)).all()
    assert (accepted > 0).any()


def test_what_is_never_accepted_is_said():
    with pytest.raises(UserError, match="2 of 2 samples were not accepted in 3 attempts"):
        rejection_sample(gaussian, lambda z: torch.zeros(len(z)), range(2), seed=0, most=3)
