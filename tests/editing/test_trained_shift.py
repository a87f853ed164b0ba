"""Shifts of h that are trained."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rcg.core import checkpoint
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.diffusion.h_space import Evaluation, ShiftNetwork
from rcg.distributed.launch import launch
from rcg.editing.directions import Direction
from rcg.editing.phases import Phases
from rcg.editing.shift_training import Judge, ShiftOptions, ShiftTask, other_judge, own_judge, train_shift
from rcg.editing.trained_shift import ShiftConfig, TrainedShift, generator_id, is_shift
from rcg.pipeline import Code, Pipeline
from tests.models import dit


@pytest.fixture(scope="module")
def pipeline(toy_run):
    return Pipeline.from_pretrained(toy_run / "run")


@pytest.fixture
def shift(pipeline):
    space = pipeline.representation.space
    torch.manual_seed(0)
    config = ShiftConfig(name="x", generator=generator_id(pipeline), channels=16, width=8, edit=0.5, boost=0.2)
    return TrainedShift(Direction("x", torch.eye(*space.shape)[0], space), config, ShiftNetwork(16, 8), "good")


@pytest.mark.parametrize("itself", [False, True])
def test_training_leads_estimates_along_the_direction(itself):
    model = dit(Space((6,)), process={"name": "gaussian", "predict": "x0"}, self_condition=itself).eval()
    model.requires_grad_(False)
    torch.manual_seed(0)
    code, probe = Code(torch.randn(4, 6), torch.randn(4, 3, 8, 8)), torch.randn(3 * 8 * 8, 5) / 14
    judge = Judge(lambda image: image.flatten(1) @ probe, torch.eye(5)[0])
    fake = SimpleNamespace(generator=model, autoencoder=SimpleNamespace(decode=lambda x: x / 2 + 0.5))
    network = ShiftNetwork(16, 16)
    task = ShiftTask(fake, network, code, judge, ShiftOptions(keep=0.1), end=0.8)
    before = task.evaluate(task.modules, 0).metrics
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for step in range(10):
        for _, losses in task.losses({"noise": code.noise, "z": code.z}, step):
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    after = task.evaluate(task.modules, 10).metrics
    assert after["alignment"] > max(before["alignment"] + 0.3, 0.5)
    assert (1 - after["alignment"]) + 0.1 * after["l1"] < (1 - before["alignment"]) + 0.1 * before["l1"]


def test_an_encoder_that_is_named_judges_by_its_class_means(pipeline):
    images = [SimpleNamespace(pixels=pixels) for pixels in torch.rand(4, 3, 16, 16)]
    judge = other_judge("{name: moco_v3, arch: resnet18, width: 4, weights: none}", pipeline, images[:2], images[2:])
    with torch.no_grad():
        z = judge.represent(torch.stack([image.pixels for image in images]))
    means = z[:2].mean(0) - z[2:].mean(0)
    torch.testing.assert_close(judge.direction, means / means.norm(), rtol=1e-4, atol=1e-5)


def test_a_shift_comes_back_from_its_file(pipeline, shift, tmp_path):
    path = tmp_path / "x.shift.safetensors"
    shift.save(path, pipeline)
    loaded = TrainedShift.load(path, pipeline)
    assert (loaded.config, loaded.phases, loaded.direction.name) == (shift.config, shift.phases, "x")
    seen = Evaluation(torch.zeros(0), torch.tensor([3, 900]), torch.randn(2, 5, 16))
    assert torch.equal(loaded(None)(seen), shift(None)(seen))
    assert is_shift(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"generator": "another"}, "is a shift of another generator than dit of this run"),
        ({"width": -1}, "config.width is wrong"),
        ({"width": 16}, "holds other tensors than its config describes"),
        ({"edit": 2}, "config.edit is wrong"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change, words, pipeline, shift, tmp_path):
    path = tmp_path / "x.shift.safetensors"
    shift.save(path, pipeline)
    part = checkpoint.load(path)
    checkpoint.save(path, replace(part, config=part.config | change))
    with pytest.raises(UserError, match=words):
        TrainedShift.load(path, pipeline)


def test_a_shift_of_other_representations_is_refused(pipeline, shift, tmp_path):
    other = replace(shift, direction=replace(shift.direction, space=Space((8,), id="elsewhere")))
    other.save(tmp_path / "x.safetensors", pipeline)
    with pytest.raises(UserError, match="is a shift of another generator"):
        TrainedShift.load(tmp_path / "x.safetensors", pipeline)


def test_a_training_is_decided_by_its_seed(pipeline, shift):
    images = [SimpleNamespace(pixels=pixels) for pixels in torch.rand(3, 3, 16, 16)]
    judge, phases, trained = own_judge(pipeline, shift.direction), Phases(0.95, 0.0), []
    for seed in (0, 0, 1):
        options = ShiftOptions(steps=1, batch_size=2, width=4, seed=seed)
        trained.append(train_shift(pipeline, images, shift.direction, judge, phases, options, launch()))
    first, again, other = (each.network.last.weight for each in trained)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    with pytest.raises(UserError, match="so that nothing is edited or learned"):
        train_shift(pipeline, images, shift.direction, judge, Phases(1.0, 0.0), options, launch())
