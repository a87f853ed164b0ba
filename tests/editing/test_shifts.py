"""Editing in h-space with a trained run."""

import pytest
import torch

from rcg.editing.directions import Direction
from rcg.editing.phases import Phases
from rcg.editing.shifts import HSpaceEditor, along, toward
from rcg.pipeline import Pipeline

STEPS = 4


@pytest.fixture(scope="module")
def pipeline(toy_run):
    return Pipeline.from_pretrained(toy_run / "run")


@pytest.fixture(scope="module")
def code(pipeline):
    return pipeline.encode(torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)), STEPS)


@pytest.fixture(scope="module")
def direction(pipeline):
    space = pipeline.representation.space
    return Direction("first", torch.eye(*space.shape)[0], space)


def test_strength_0_is_the_reconstruction_bit_for_bit(pipeline, code, direction):
    editor = HSpaceEditor(pipeline, along(pipeline, direction), Phases(0.3, 0.0), steps=STEPS)
    assert torch.equal(editor(code, 0.0, range(3)), pipeline.decode(code, STEPS))
    assert not torch.equal(editor(code, 3.0, range(3)), pipeline.decode(code, STEPS))


def test_boosting_depends_on_the_index_of_an_image_alone(pipeline, code, direction):
    editor = HSpaceEditor(pipeline, along(pipeline, direction), Phases(0.6, 0.6), steps=STEPS)
    together = editor(code, 1.0, range(3))
    alone = editor(type(code)(*(part[2:] for part in code)), 1.0, [2])
    torch.testing.assert_close(alone, together[2:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(editor(code, 0.0, range(3)), pipeline.decode(code, STEPS))


def test_the_mean_shift_of_one_image_is_its_own(pipeline, code, direction):
    alone = type(code)(*(part[:1] for part in code))
    editor = HSpaceEditor(pipeline, along(pipeline, direction), Phases(0.0, 0.0), steps=STEPS)
    assert torch.equal(editor(alone, 2.0, [0]), editor.by_mean(alone, 2.0, [0]))


def test_a_shift_leads_toward_other_images(pipeline, code):
    shift_of = toward(pipeline, lambda z: z.roll(1, 0))
    editor = HSpaceEditor(pipeline, shift_of, Phases(0.0, 0.0), steps=STEPS)
    moved, own = editor(code, 3.0, range(3)), pipeline.decode(code, STEPS)
    assert not torch.allclose(moved, own)
    to_itself = HSpaceEditor(pipeline, toward(pipeline, lambda z: z), Phases(0.0, 0.0), steps=STEPS)
    torch.testing.assert_close(to_itself(code, 3.0, range(3)), own, rtol=1e-3, atol=1e-3)
