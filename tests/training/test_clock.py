"""What an evaluation of a generator judges: distances, their expected values, copies, and how much of it."""

import json

import pytest
import torch
import yaml

from rcg.config import GeneratorTrain, load_experiment
from rcg.core.errors import UserError
from rcg.data.images import load_images
from rcg.data.views import ShardedViews
from rcg.encoding.run_folder import Mode, StageFolder
from rcg.training.clock import Clock, JudgedSpace, judged_samples
from rcg.training.logger import _pretty
from tests.line import log
from tests.toy import EXPERIMENT, ROOT, train, write

JUDGED = {
    "data__limit": 260,
    "data__validation": 0.25,
    "encoder__weights": "none",
    "generator__sampler": {"name": "ddim", "steps": 2},
    "generator__train": {"steps": 16, "batch_size": 12, "evaluate_every": 4, "save_every": 4, "lr": 1e-3},
}
"""Four evaluations, each of 36 samples where these may cost as much as training: 3 * 48 evaluations of the network."""
QUIET = ("generator.train.precision=no", "generator.train.tracker=none")


@pytest.fixture(scope="module")
def images():
    return load_images(load_experiment(str(ROOT / "configs" / "digits.yaml"), ["data.limit=200"]).data)


def mean_and_spread(image):
    return torch.stack([image.mean((1, 2, 3)), image.std((1, 2, 3))], dim=1).cpu()


def clock(images, folder, **changes):
    vectors = [mean_and_spread(torch.stack([item["image"] for item in part]))[:, None] for part in images]
    spaces = [JudgedSpace("", mean_and_spread, *(ShardedViews([x]) for x in vectors), is_own=True)]
    return Clock(40, spaces, *images, GeneratorTrain(**{"steps": 1000} | changes), StageFolder(folder))


def stack(images, count):
    return torch.stack([images[i]["image"] for i in range(count)])


def test_copied_images_are_copies_and_held_out_ones_are_not(images, tmp_path):
    judge = clock(images, tmp_path)
    copied = judge.measure(stack(images.train, 40), 10)
    assert (copied["copies"], copied["copies_pixels"]) == (1, 1)
    held_out = judge.measure(stack(images.validation, 36), 10)
    assert held_out["copies_pixels"] < 0.1
    assert abs(held_out["fd"]) < 1e-6  # they are what the distance is extrapolated against
    assert judge.measure(1 - stack(images.train, 40), 10)["fd"] > 0.1


def test_the_expected_distance_follows_the_log_up_to_now(images, tmp_path):
    judge = clock(images, tmp_path)
    samples = 1 - stack(images.train, 40)
    value = judge.measure(samples, 400)["fd"]
    # Distances that fall as step^-0.5 up to this one; later lines are of steps that are taken again.
    lines = [{"step": s, "seconds": s, "fd": value * (400 / s) ** 0.5} for s in (100, 200)]
    lines += [{"step": 600, "seconds": 600, "fd": 1e6}]
    judge.folder.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert judge.measure(samples, 400)["fd_at_end"] == pytest.approx(value * 0.4**0.5, rel=1e-6)
    assert "fd_at_end" not in judge.measure(samples, 1000)


def test_the_expected_value_is_printed_beside_its_metric():
    assert _pretty({"fd": 74.0, "fd_at_end": 60.0, "copies": 0.0}) == ["fd 74, about 60 at the end", "copies 0"]


@pytest.mark.parametrize(
    ("overrides", "validation", "expected"),
    [
        # 600 steps of 128 images: a twentieth of 3 * 76,800 evaluations; a sample takes 25, twice for guidance, and 2.
        ([], 334, 221),
        ([], 50, 50),
        (["generator.guidance.scale=1"], 999, 426),
        (["generator.early_exit.block=2", "generator.guidance.against=early_exit"], 999, 426),
        (["generator.condition=none", "generator.train.judged_samples=100"], 999, 100),
        (["generator.train.judged_samples=0"], 999, 0),
        (["generator.train.evaluate_every=50"], 999, 0),  # 18 would be too few
    ],
)
def test_judging_costs_a_twentieth_of_training(overrides, validation, expected):
    experiment = load_experiment(str(ROOT / "configs" / "digits.yaml"), overrides)
    assert judged_samples(experiment.generator, validation) == expected


def train_judged(path, *overrides, mode=Mode.START):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("rcg.training.clock.COST", 1)
        return train("generator", path, *QUIET, *overrides, mode=mode)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The configuration and the stage of a generator whose evaluations judge."""
    path = write(tmp_path_factory.mktemp("judged"), **JUDGED)
    return path, train_judged(path)


def test_every_evaluation_judges_in_the_same_way_after_an_interruption(trained):
    path, stage = trained
    whole, weights = log(stage.path), stage.part().tensors
    judged = [line for line in whole if "validation_mse" in line]
    assert [line["step"] for line in judged] == [4, 8, 12, 16]
    assert all({"fd", "copies", "copies_pixels"} <= line.keys() for line in judged)
    assert ["fd_at_end" in line for line in judged] == [False, False, True, False]
    for state in stage.state_files()[:-1]:
        state.unlink()
    first = stage.step
    assert first < 16
    resumed = train_judged(path, mode=Mode.RESUME)
    assert log(resumed.path) == whole
    assert all(torch.equal(value, resumed.part().tensors[name]) for name, value in weights.items())


def test_judging_changes_nothing_in_training(trained, tmp_path):
    path, stage = trained
    unjudged = train_judged(path, "generator.train.judged_samples=0", f"run={tmp_path / 'run'}")
    assert not any("fd" in line for line in log(unjudged.path))
    losses = [[line["validation_mse"] for line in log(s.path) if "validation_mse" in line] for s in (stage, unjudged)]
    assert losses[0] == losses[1]
    weights = stage.part().tensors
    assert all(torch.equal(value, weights[name]) for name, value in unjudged.part().tensors.items())


def test_a_second_encoder_judges_too_and_patience_may_follow_the_distance(trained, tmp_path):
    path, _ = trained
    judge = tmp_path / "judge.yaml"
    judge.write_text(yaml.safe_dump({"encoder": EXPERIMENT["encoder"] | {"width": 8, "weights": "none"}}))
    changes = [f"generator.train.judge={judge}", "generator.train.score=fd", "generator.train.patience=9"]
    stage = train_judged(path, *changes, "generator.train.steps=4", f"run={tmp_path / 'run'}")
    (line,) = [line for line in log(stage.path) if "fd" in line]
    assert line["fd_judge"] != line["fd"]
    assert stage.part().facts.step == 4


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["generator.train.judge=nothing.yaml"], "no file nothing.yaml with an encoder section"),
        (["generator.train.score=fd", "generator.train.judged_samples=0"], "score: fd needs samples to judge"),
        (["generator.train.judge=a.yaml", "generator.train.judged_samples=0"], "judge needs samples to judge"),
        (["generator.train.score=fd", "generator.train.evaluate_every=1"], "fewer than 32 samples to judge"),
        (["generator.train.score=fd", "generator.condition=none"], "run tools/cache.py first"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_is_written(trained, tmp_path, overrides, expected):
    path, _ = trained
    with pytest.raises(UserError, match=expected):
        train_judged(path, *overrides, f"run={tmp_path / 'run'}")
    assert not list((tmp_path / "run").glob("dit*"))
