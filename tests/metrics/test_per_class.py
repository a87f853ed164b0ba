"""Class by class: agreement and rep-FD against cases whose answer is known."""

import pytest
import torch

from rcg.metrics.per_class import per_class, table
from rcg.metrics.probe import LinearProbe

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
    assert (row.compared, row.rep_fd, row.reference_fd) == (0, None, None)


def test_the_table_ends_with_the_mean():
    found = rows(*draw(450, 2))
    cells = table(found)
    assert len(cells) == 4
    assert cells[-1][:2] == ["mean", "450"]
    assert float(cells[-1][4]) == pytest.approx(sum(row.rep_fd for row in found) / 3, abs=1e-3)


def test_a_class_without_validation_images_leaves_the_mean_of_the_others():
    train, validation = draw(900, 0), draw(300, 1)
    seen = validation[1] != 2
    names, requested = "abc", torch.arange(30) % 3
    found = per_class(
        draw(30, 2)[0], requested, *train, validation[0][seen], validation[1][seen], lambda z: z[:, :3].argmax(1), names
    )
    assert [row.agreement_real is None for row in found] == [False, False, True]
    cells = table(found)
    assert [row[3] == "" for row in cells] == [False, False, True, False]
    assert not any("nan" in cell for row in cells for cell in row)


@pytest.mark.parametrize("labels", [(0, 1), (0, 3), (2, 3)])
def test_a_probe_of_two_classes_serves_every_column(labels):
    def two(count, seed):
        z, found = draw(3 * count, seed)
        kept = found < 2
        return z[kept], torch.tensor(labels)[found[kept]]

    train, validation, generated = two(300, 0), two(100, 1), two(60, 2)
    probe = LinearProbe.fit(*train)
    found = per_class(*generated, *train, *validation, probe.predict, "abcd")
    assert [row.name for row in found] == ["abcd"[label] for label in labels]
    for row in found:
        assert row.agreement > 0.9
        assert row.agreement_real > 0.9
    swapped = torch.where(generated[1] == labels[0], labels[1], labels[0])
    assert probe.accuracy(generated[0], generated[1]) > 0.9
    assert probe.accuracy(generated[0], swapped) < 0.1
