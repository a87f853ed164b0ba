"""Directions found from labels, numbers and variance; checked where the true direction is known."""

import math
import re
from pathlib import Path

import pytest
import torch

from rcg.core import checkpoint
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.editing.directions import Direction, fit_direction, principal_directions

SPACE = Space((8,), id="toy")


@pytest.fixture
def z():
    return torch.randn(600, 8, generator=torch.Generator().manual_seed(0))


def quality(direction):
    """The number in its words."""
    return float(re.search(r"(accuracy|variance) (\S+) \(cross-validated\)", direction.quality)[2])


def axis(index):
    return torch.eye(8)[index]


def test_the_direction_of_a_label_is_found(z):
    direction = fit_direction("right", z, (z[:, 2] > 0).float(), SPACE)
    assert float(direction.vector @ axis(2)) > 0.98
    assert quality(direction) > 0.95
    assert direction.quality.endswith("of 600 examples with it")


def test_the_direction_of_a_number_is_found(z):
    direction = fit_direction("slope", z, 3 * z[:, 1] - 4 * z[:, 5], SPACE)
    assert torch.allclose(direction.vector, 0.6 * axis(1) - 0.8 * axis(5), atol=0.02)
    assert quality(direction) > 0.95


def test_moving_raises_the_score_by_the_strength(z):
    direction = Direction("x", axis(0), SPACE)
    moved = direction.move(z, 0.5)
    assert torch.allclose(direction.score(moved) - direction.score(z), torch.full((600,), 0.5), atol=1e-5)


def test_a_direction_without_another_leaves_it_alone(z):
    slanted = Direction("slanted", (axis(0) + axis(1)) / 2**0.5, SPACE)
    first = Direction("first", axis(0), SPACE)
    rest = slanted.without([first])
    assert torch.allclose(rest.vector, axis(1), atol=1e-6)
    assert torch.allclose(first.score(rest.move(z, 1.0)), first.score(z), atol=1e-5)
    with pytest.raises(UserError, match="nothing of the direction first is left without first"):
        first.without([first])


def test_principal_directions_are_those_of_the_largest_variance(z):
    first, second = principal_directions(z * torch.tensor([1, 1, 1, 9, 1, 1, 5, 1.0]), 2, SPACE)
    assert abs(float(first.vector @ axis(3))) > 0.99
    assert abs(float(second.vector @ axis(6))) > 0.99


def test_a_direction_survives_its_file(z, tmp_path):
    direction = fit_direction("right", z, (z[:, 2] > 0).float(), SPACE)
    direction.save(tmp_path / "right.safetensors")
    again = Direction.load(tmp_path / "right.safetensors", SPACE)
    assert torch.equal(again.vector, direction.vector)
    assert (again.name, again.quality) == (direction.name, direction.quality)


def test_a_direction_of_another_space_is_refused(tmp_path):
    Direction("x", axis(0), SPACE).save(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="is a direction of toy"):
        Direction.load(tmp_path / "x.safetensors", Space((8,), id="other"))


@pytest.mark.parametrize(
    "values", [torch.ones(10), torch.tensor([0.0, 1.0]), torch.tensor([1.0] + [0.0] * 9), torch.tensor([1.0, 2.0, 3.0])]
)
def test_an_attribute_without_contrast_is_refused(z, values):
    with pytest.raises(UserError, match="the attribute smile has"):
        fit_direction("smile", z[: len(values)], values, SPACE)


@pytest.mark.parametrize("count", [4, 5, 7])
def test_figures_of_few_numbers_are_finite(z, count):
    direction = fit_direction("slope", z[:count], z[:count, 0], SPACE)
    assert math.isfinite(quality(direction))


@pytest.mark.parametrize("name", ["../../elsewhere", "a/b", "..", "", "smile\n"])
def test_a_name_leads_to_no_other_folder(name):
    file = Path("edits") / f"{Direction(name, axis(0), SPACE).file_name}.png"
    assert file.parent == Path("edits")
    assert file.resolve().parent == Path("edits").resolve()


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        ({}, {"vector": axis(0)}),
        ({"name": ["x"]}, {"vector": axis(0)}),
        ({"name": "x"}, {}),
        ({"name": "x"}, {"vector": torch.eye(9)[0]}),
        ({"name": "x"}, {"vector": torch.eye(8, dtype=torch.int64)[0]}),
    ],
)
def test_an_edited_file_is_refused_in_one_sentence(config, tensors, tmp_path):
    checkpoint.save(tmp_path / "x.safetensors", Part("direction", config, Facts(data=SPACE), tensors))
    with pytest.raises(UserError, match="must hold a name and a tensor 'vector'"):
        Direction.load(tmp_path / "x.safetensors", SPACE)
