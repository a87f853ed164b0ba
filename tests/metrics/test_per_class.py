"""Class by class: agreement and rep-FD against cases whose answer is known."""

import math

import pytest
import torch

from rcg.metrics.per_class import per_class, table

CENTERS = 5 * torch.eye(3, 4)


def draw(count, seed):
    labels = torch.arange(count) % 3
    return CENTERS[labels] + torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)), labels


def rows(generated, requested):
    return per_class(generated, requested, *draw(900, 0), *draw(300, 1), lambda z: z[:, :3].argmax(1), "abc")


def test_real_representations_agree_with_their_class_and_reach_the_reference():
    found = rows(*draw(450, 2))
    assert [row.name for row in found] == ["a", "b", "c"]
    for row in found:
        assert row.generated == 150
        assert row.agreement == pytest.approx(row.agreement_real, abs=0.03)
        assert row.rep_fd == pytest.approx(row.reference_fd, abs=0.15)


def test_representations_of_another_class_disagree_and_are_far():
    generated, labels = draw(450, 2)
    found = rows(generated, (labels + 1) % 3)
    for row in found:
        assert row.agreement < 0.05
        assert row.rep_fd == pytest.approx(50, rel=0.1)  # the squared distance of two centers


def test_classes_with_a_single_sample_have_no_distance():
    (row,) = rows(CENTERS[1:2], torch.tensor([1]))
    assert (row.name, row.generated, row.agreement) == ("b", 1, 1.0)
    assert math.isnan(row.rep_fd)


def test_the_table_ends_with_the_mean():
    lines = table(rows(*draw(450, 2))).splitlines()
    assert len(lines) == 6
    assert lines[-1].startswith("| all | 450 | ")
