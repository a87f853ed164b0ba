"""Sparse features are found where they are known."""

import pytest
import torch

from rcg.core.errors import UserError
from rcg.editing import sparse_autoencoder
from rcg.editing.sparse_autoencoder import SparseAutoencoder, find_features


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(sparse_autoencoder, "STEPS", 400)


@pytest.fixture
def mixture():
    """12 directions of 24 dimensions, and 1,000 z that each have two of them, around a center."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(24, 24, generator=generator)).Q[:12]
    chosen = torch.rand(1000, 12, generator=generator).topk(2, dim=1).indices
    amounts = torch.zeros(1000, 12).scatter(1, chosen, 1 + torch.rand(1000, 2, generator=generator))
    return directions, amounts, 5 + amounts @ directions


def test_the_features_of_a_mixture_are_found(mixture):
    directions, amounts, z = mixture
    found = find_features(z, count=24, active=2)
    likeness, feature = (directions @ found.directions.T).max(1)
    is_found = likeness > 0.9
    assert int(is_found.sum()) >= 11
    assert found.explained > 0.9
    # The images that have a feature are those that were given it.
    has_it = found.coefficients[:, feature[is_found]] > 0
    assert float((has_it == (amounts[:, is_found] > 0)).double().mean()) > 0.95


def test_features_have_length_one_and_come_in_the_order_of_what_they_explain(mixture):
    found = find_features(mixture[2], count=16, active=3)
    torch.testing.assert_close(found.directions.norm(dim=1), torch.ones(len(found.directions)))
    assert (found.coefficients.square().sum(0).diff() <= 0).all()
    assert len(found.directions) + found.dead == 16
    assert (found.shares > 0).all()


def test_an_image_has_as_many_features_as_it_may(mixture):
    model = SparseAutoencoder(torch.zeros(24), mixture[0], active=3)
    assert int((model.encode(mixture[2]) > 0).sum(1).max()) == 3


def test_features_follow_from_the_seed(mixture, monkeypatch):
    monkeypatch.setattr(sparse_autoencoder, "STEPS", 20)
    first, again, other = (find_features(mixture[2], 12, 2, seed) for seed in (1, 1, 2))
    assert torch.equal(first.directions, again.directions)
    assert not torch.equal(first.directions, other.directions)


@pytest.mark.parametrize(
    ("count", "active", "images", "words"),
    [(4, 5, 100, "at most all 4 features"), (50, 2, 40, "50 features need as many images"), (2, 1, 19, "at least 20")],
)
def test_too_few_features_or_images_are_refused(mixture, count, active, images, words):
    with pytest.raises(UserError, match=words):
        find_features(mixture[2][:images], count, active)
