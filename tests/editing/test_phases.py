"""Phases of editing in h-space: found from curves, or given."""

import pytest
import torch

from rcg.core.errors import UserError
from rcg.editing import phases
from rcg.editing.distance import open_distance
from rcg.editing.phases import Curves, Phases, choose_phases, find_phases, measure_curves
from rcg.pipeline import Pipeline

TIMES = [time / 10 for time in range(1, 11)]
CURVES = Curves(TIMES, [time**2 for time in TIMES], [time**0.5 for time in TIMES])


@pytest.fixture(scope="module")
def pipeline(toy_run):
    return Pipeline.from_pretrained(toy_run / "run")


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_phases_are_the_first_times_at_which_the_curves_have_risen_by_a_share():
    assert find_phases(CURVES, edit=0.25, boost=0.7) == Phases(0.5, 0.5)
    assert find_phases(CURVES, edit=0.26, boost=0.3) == Phases(0.6, 0.1)


def test_times_grow_with_their_shares():
    found = [find_phases(CURVES, share, share) for share in (0.0, 0.2, 0.4, 0.8, 1.0)]
    assert found == sorted(found, key=lambda each: each.edit) == sorted(found, key=lambda each: each.boost)
    assert found[-1] == Phases(1.0, 1.0)


def test_curves_lead_from_images_to_noise(pipeline, images):
    curves = measure_curves(pipeline, images, open_distance(pipeline), steps=5)
    assert curves.times == sorted(curves.times)
    assert len(curves.times) == len(curves.predicted) == len(curves.noisy) == 5
    assert curves.noisy[0] < curves.noisy[-1]
    in_parts = measure_curves(pipeline, images, open_distance(pipeline), steps=5, batch_size=2)
    assert in_parts.predicted == pytest.approx(curves.predicted, rel=1e-3)


def test_given_phases_are_used_and_nothing_is_measured(pipeline, images, monkeypatch):
    monkeypatch.setattr(phases, "measure_curves", None)
    assert choose_phases(pipeline, images, 0.5, 0.2) == Phases(0.5, 0.2)
    with pytest.raises(UserError, match=r"t_boost is 0\.6, but editing ends at t_edit 0\.5"):
        choose_phases(pipeline, images, 0.5, 0.6)


def test_what_is_not_given_is_found(pipeline, images, monkeypatch):
    monkeypatch.setattr(phases, "measure_curves", lambda *arguments: CURVES)
    assert choose_phases(pipeline, images) == Phases(0.6, 0.6)  # boosting begins after editing
    assert choose_phases(pipeline, images, t_edit=0.9) == Phases(0.9, 0.8)
    assert choose_phases(pipeline, images, t_boost=0.1) == Phases(0.6, 0.1)
