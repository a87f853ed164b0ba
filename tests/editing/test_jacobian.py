"""Local directions of a linear map are its singular vectors."""

import torch

from rcg.editing.jacobian import local_directions


def test_directions_of_a_linear_map_are_its_singular_vectors():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3 * 4 * 4, 6, generator=generator)
    region = torch.zeros(1, 4, 4)
    region[:, :2] = 1

    def estimate(z):
        return (z @ matrix.T).view(-1, 3, 4, 4)

    directions, values = local_directions(estimate, torch.randn(6, generator=generator), region, 2, iterations=40)
    inside = region.expand(3, 4, 4).flatten()[:, None] * matrix
    _, singular_values, right = torch.linalg.svd(inside, full_matrices=False)
    assert torch.allclose(values, singular_values[:2], rtol=1e-3)
    assert torch.allclose((directions @ right[:2].T).abs(), torch.eye(2), atol=1e-2)


def test_what_lies_outside_of_the_region_does_not_count():
    def estimate(z):
        return torch.stack([z[:, 0], 100 * z[:, 1]], dim=1)

    directions, values = local_directions(estimate, torch.zeros(2), torch.tensor([1.0, 0.0]), 1)
    assert torch.allclose(directions.abs(), torch.tensor([[1.0, 0.0]]), atol=1e-4)
    assert torch.allclose(values, torch.ones(1), atol=1e-4)
