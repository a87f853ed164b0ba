"""Figures of an edit."""

import pytest
import torch

from rcg.editing.edit import linearity, monotonicity, precision


def test_scores_on_a_straight_line_are_linear():
    assert linearity([-1, 0, 2], [-0.5, 0.5, 2.5]) == pytest.approx(1)
    assert linearity([-1, 0, 1], [1, 0, 1]) == pytest.approx(0)


@pytest.mark.parametrize(("strengths", "scores"), [([0, 1], [0, 1]), ([1, 1, 0], [1, 2, 3]), ([0, 1, 2], [3, 3, 3])])
def test_a_line_through_two_points_or_none_says_nothing(strengths, scores):
    assert linearity(strengths, scores) is None


def test_values_that_rise_with_the_strength_are_monotonic():
    rising, falling = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.0, -1.0, -5.0])
    assert monotonicity([-1, 0, 1], torch.stack([rising, rising])) == pytest.approx(1)
    assert monotonicity([-1, 0, 1], torch.stack([rising, falling])) == pytest.approx(0)
    assert monotonicity([1, -1, 0], torch.tensor([[9.0, 1.0, 2.0]])) == pytest.approx(1)
    assert monotonicity([-1, 0, 1], torch.stack([rising, torch.ones(3)])) == pytest.approx(0.5)
    assert monotonicity([0, 1], rising[None, :2]) is None


def test_the_precision_of_an_edit_compares_its_attribute_with_the_others():
    assert precision(torch.tensor([0.3, -0.3]), [torch.tensor([0.1, -0.1]), torch.tensor([0.0, 0.2])]) == (
        pytest.approx(0.3 / 0.1)
    )
    assert precision(torch.ones(2), []) is None
    assert precision(torch.ones(2), [torch.zeros(2)]) is None
