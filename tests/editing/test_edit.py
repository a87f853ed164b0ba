"""Figures of an edit."""

import pytest

from rcg.editing.edit import linearity


def test_scores_on_a_straight_line_are_linear():
    assert linearity([-1, 0, 2], [-0.5, 0.5, 2.5]) == pytest.approx(1)
    assert linearity([-1, 0, 1], [1, 0, 1]) == pytest.approx(0)


@pytest.mark.parametrize(("strengths", "scores"), [([0, 1], [0, 1]), ([1, 1, 0], [1, 2, 3]), ([0, 1, 2], [3, 3, 3])])
def test_a_line_through_two_points_or_none_says_nothing(strengths, scores):
    assert linearity(strengths, scores) is None
