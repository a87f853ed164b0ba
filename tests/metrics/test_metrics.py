"""Metrics against closed forms and other implementations."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from rcg.metrics.bootstrap import bootstrap
from rcg.metrics.frechet import FittedGaussian, frechet_distance, halves
from rcg.metrics.manifold import coverage, density, nearest_distance, nearest_neighbors, precision_recall
from rcg.metrics.memorization import memorization
from rcg.metrics.representation import alignment, effective_rank, knn_accuracy, nearest_by_cosine, uniformity


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


def test_gaussians_merge_as_if_all_vectors_had_come_at_once():
    x, other = draws(300, 6, 0), draws(50, 6, 1)
    merged = (
        FittedGaussian.fit(x[:3]).merge(FittedGaussian.fit(x[3:4])).merge(FittedGaussian.fit(x[4:]))
    )  # smaller than D, and alone
    assert merged.count == 300
    torch.testing.assert_close(merged.mean, x.mean(0))
    torch.testing.assert_close(merged.factor.T @ merged.factor, x.T.cov())
    assert merged.distance(FittedGaussian.fit(other)) == pytest.approx(frechet_distance(x, other), rel=1e-9)


def test_published_moments_give_the_distance_of_the_vectors():
    a, b = draws(300, 6, 0), draws(200, 6, 1)
    published = FittedGaussian.of_moments(b.mean(0), b.T.cov())
    assert FittedGaussian.fit(a).distance(published) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert published.distance(published) == pytest.approx(0, abs=1e-9)


def test_halves_are_disjoint_and_of_equal_size():
    a, b = halves(101, limit=40)
    assert len(a) == len(b) == 40
    assert not set(a.flatten().tolist()) & set(b.flatten().tolist())


def test_neighbors_vote_by_cosine():
    train = torch.tensor([[1.0, 0], [2, 0.1], [0, 1], [0.1, 3]])
    labels = torch.tensor([0, 0, 1, 1])
    test = torch.tensor([[50.0, 1], [0.01, 0.02]])
    assert knn_accuracy(train, labels, test, torch.tensor([0, 1]), k=1) == 1.0
    assert knn_accuracy(train, labels, test, torch.tensor([1, 1]), k=1) == 0.5


def test_the_nearest_by_cosine_ignores_lengths():
    others = torch.tensor([[0.1, 0], [5, 5], [0, 9.0]])
    assert nearest_by_cosine(torch.tensor([[2.0, 0.1], [0, 1]]), others, 2).tolist() == [[0, 1], [2, 1]]


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


def test_density_and_coverage_agree_with_brute_force():
    torch.manual_seed(0)
    real, generated = torch.randn(40, 2), torch.randn(30, 2) * 0.3 + 1
    radii = [sorted(float((x - other).norm()) for other in real)[5] for x in real]  # the first is itself
    inside = [[float((y - x).norm()) <= radius for x, radius in zip(real, radii)] for y in generated]
    assert density(generated, real, k=5).tolist() == pytest.approx([sum(row) / 5 for row in inside])
    assert coverage(real, generated, k=5).tolist() == [float(any(column)) for column in zip(*inside)]
    assert 0 < coverage(real, generated, k=5).mean() < 1


def test_nearest_neighbors_are_found_across_parts(monkeypatch):
    monkeypatch.setattr("rcg.metrics.manifold.PART", 1)
    torch.manual_seed(0)
    queries, others = torch.randn(7, 3), torch.randn(160, 3)  # 7 parts of queries, 4 of others
    distances, positions = nearest_neighbors(queries, others, 3)
    expected = (queries[:, None] - others).norm(dim=2).sort(1)
    assert torch.equal(positions, expected.indices[:, :3])
    torch.testing.assert_close(distances, expected.values[:, :3], atol=1e-5, rtol=1e-5)


def test_copies_are_samples_closer_than_the_closest_validation_images():
    torch.manual_seed(0)
    train, validation = (torch.randint(256, (n, 3072), dtype=torch.uint8) for n in (200, 300))
    honest = memorization(torch.randint(256, (300, 3072), dtype=torch.uint8), train, validation)
    assert float(honest.copies.mean()) < 0.05
    assert honest.ratio == pytest.approx(1, abs=0.1)
    copied = memorization(torch.cat([train[:50], validation[:50]]), train, validation)
    assert copied.copies[:50].all()
    assert float(copied.copies[50:].mean()) < 0.1
    assert copied.distances[:50, 0].eq(0).all()  # not nearly: the search alone would not see the difference
    assert copied.nearest[:50, 0].tolist() == list(range(50))


def test_the_bootstrap_estimates_the_std_of_a_mean():
    x = draws(2000, 1, 0)[:, 0]
    std = bootstrap(lambda rows: float(rows.mean()), x, resamples=400)
    assert std == pytest.approx(float(x.std()) / 2000**0.5, rel=0.15)
    assert bootstrap(lambda rows: float(rows.mean()), x, resamples=400) == std
    assert bootstrap(lambda rows: 0.0, x, resamples=1) is None
    assert bootstrap(lambda rows: 0.0, x[:1], resamples=9) is None, "one row does not vary"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_figures_of_very_few_vectors_are_left_out(count):
    x, many = draws(count, 4, 0), draws(20, 4, 1)
    assert precision_recall(x, many) is None
    assert precision_recall(many, x) is None
    assert (uniformity(x) is None) == (count == 1)
    assert math.isfinite(effective_rank(x))
    labels = torch.zeros(count, dtype=torch.int64)
    assert knn_accuracy(x, labels, many, torch.zeros(20, dtype=torch.int64)) == 1


def test_equal_vectors_have_the_least_rank():
    assert effective_rank(torch.ones(5, 3)) == pytest.approx(1)
