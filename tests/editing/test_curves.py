"""Curves: ends are the given points, great circles keep norms."""

import pytest
import torch

from rcg.editing.curves import along, lerp, path_length, slerp


@pytest.fixture
def ends():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 3, 4, generator=generator)


@pytest.mark.parametrize("path", [lerp, slerp])
def test_a_path_leads_from_one_end_to_the_other(path, ends):
    a, b = ends
    assert torch.allclose(path(a, b, 0.0), a, atol=1e-6)
    assert torch.allclose(path(a, b, 1.0), b, atol=1e-6)


def test_great_circles_keep_the_norm(ends):
    a, b = (end / end.flatten(1).norm(dim=1).view(-1, 1, 1) for end in ends)
    for share in (0.2, 0.5, 0.9):
        assert torch.allclose(slerp(a, b, share).flatten(1).norm(dim=1), torch.ones(5), atol=1e-6)


def test_great_circles_turn_evenly():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    third = slerp(a, b, 1 / 3)
    assert torch.allclose(third, torch.tensor([[3**0.5 / 2, 0.5]]), atol=1e-6)


def test_equal_and_opposite_ends_are_joined_by_a_line():
    a = torch.tensor([[1.0, 2.0]])
    assert torch.allclose(slerp(a, a, 0.3), a)
    assert torch.isfinite(slerp(a, -a, 0.3)).all()


def test_a_path_through_points_visits_them(ends):
    points = torch.stack([ends[0, 0], ends[1, 0], ends[0, 1]])
    frames = along(points, slerp, 4)
    assert len(frames) == 2 * 4 + 1
    assert torch.allclose(frames[::4], points, atol=1e-6)


def test_the_length_of_a_straight_path_does_not_depend_on_the_frames():
    # Squared distances of a point that moves evenly over a length of 3.
    lengths = [path_length([(3 / frames) ** 2] * frames, frames) for frames in (4, 16)]
    assert lengths == pytest.approx([9.0, 9.0])
