"""Metrics against closed forms and other implementations."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from rcg.metrics.frechet import frechet_distance, halves
from rcg.metrics.manifold import nearest_distance, precision_recall
from rcg.metrics.representation import alignment, effective_rank, knn_accuracy, uniformity


def draws(n, d, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64) @ torch.randn(d, d, generator=g, dtype=torch.float64)


def test_frechet_distance_equals_scipys_matrix_root():
    a, b = draws(500, 6, 0), draws(400, 6, 1) + 0.5
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((a.mean(0) - b.mean(0)).numpy() ** 2) + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_a_shifted_and_scaled_set_has_its_closed_form():
    a = draws(1000, 5, 0)
    # Scaling about the mean by c: tr(A) (c - 1)^2; shifting: the squared length.
    b = 3 * (a - a.mean(0)) + a.mean(0) + 2
    expected = 4 * np.trace(np.cov(a.numpy(), rowvar=False)) + 5 * 4
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_survives_fewer_samples_than_dimensions():
    a = draws(4, 20, 0)
    assert 0 <= frechet_distance(a, a + 1) == pytest.approx(20, rel=1e-6)


def test_halves_are_disjoint_and_of_equal_size():
    a, b = halves(101, limit=40)
    assert len(a) == len(b) == 40
    assert not set(a.flatten().tolist()) & set(b.flatten().tolist())


def test_neighbours_vote_by_cosine():
    train = torch.tensor([[1.0, 0], [2, 0.1], [0, 1], [0.1, 3]])
    labels = torch.tensor([0, 0, 1, 1])
    test = torch.tensor([[50.0, 1], [0.01, 0.02]])
    assert knn_accuracy(train, labels, test, torch.tensor([0, 1]), k=1) == 1.0
    assert knn_accuracy(train, labels, test, torch.tensor([1, 1]), k=1) == 0.5


def test_alignment_is_zero_for_equal_and_four_for_opposite_views():
    x = draws(10, 4, 0)
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4)


def test_uniformity_has_its_closed_forms():
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-6)
    # Two antipodal points: one pair at squared distance 4.
    assert uniformity(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(-8)


def test_effective_rank_counts_equal_directions():
    axes = torch.cat([torch.eye(4), -torch.eye(4)])
    assert effective_rank(axes) == pytest.approx(4)
    assert effective_rank(torch.tensor([[1.0, 2], [-1, -2]])) == pytest.approx(1)
    uneven = torch.cat([torch.diag(torch.tensor([3.0, 1])), -torch.diag(torch.tensor([3.0, 1]))])
    assert effective_rank(uneven) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_precision_and_recall_agree_with_brute_force():
    torch.manual_seed(0)
    real, generated = torch.randn(60, 3), torch.randn(50, 3) * 0.7 + 0.3

    def share(queries, others, k):
        inside = 0
        for q in queries:
            for i, o in enumerate(others):
                radius = sorted(float((o - other).norm()) for j, other in enumerate(others) if j != i)[k - 1]
                if float((q - o).norm()) <= radius:
                    inside += 1
                    break
        return inside / len(queries)

    found = precision_recall(real, generated, k=3)
    assert found.precision == pytest.approx(share(generated, real, 3))
    assert found.recall == pytest.approx(share(real, generated, 3))
    assert 0 < found.recall < found.precision <= 1


def test_nearest_distances_can_skip_the_vector_itself():
    x = torch.tensor([[0.0], [1.0], [3.0]])
    assert nearest_distance(x, x).tolist() == [0, 0, 0]
    assert nearest_distance(x, x, skip=1).tolist() == [1, 1, 2]
