"""The loop's own parts: learning rate, moving average, shares of a batch, losses that are not finite."""

import json
import math

import numpy as np
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from safetensors.torch import load_file
from torch import nn

from rcg.config import TrainConfig
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import EvalResult, Task
from rcg.core.errors import UserError
from rcg.data.loading import StepKeys, TensorDataset
from rcg.distributed.launch import launch
from rcg.encoding.run_folder import Mode, StageFolder
from rcg.training.ema import EMA
from rcg.training.loop import learning_rate, train
from tests.toy import train as train_stage
from tests.toy import write


def test_the_average_warms_up_as_the_published_one(data):
    recorded = load_file(data / "litema_rule.safetensors")
    live, shadow = recorded["in/live"], recorded["out/shadow"]
    module = nn.Linear(1, 1)
    module.weight.data = live[0].clone()
    average = EMA(module, 0.9999)
    seen = [live[0]]
    for value in live[1:]:
        module.weight.data.copy_(value)
        average.update(module)
        seen.append(average.module.weight.data.clone())
    torch.testing.assert_close(torch.stack(seen), shadow, atol=1e-6, rtol=1e-6)


def test_the_rate_warms_up_and_falls_to_zero_by_half_a_cosine():
    config = TrainConfig(lr=2.0, steps=110, warmup=10, schedule="cosine")
    assert learning_rate(config, 0) == pytest.approx(0.2)
    assert learning_rate(config, 9) == pytest.approx(2.0)
    assert learning_rate(config, 60) == pytest.approx(1.0)
    assert learning_rate(config, 109) == pytest.approx(1 + math.cos(math.pi * 0.99), abs=1e-9)
    assert learning_rate(TrainConfig(lr=2.0), 10_000) == 2.0


def test_processes_and_micro_batches_share_exactly_the_batch_of_one_process():
    config = TrainConfig(batch_size=24)
    whole = StepKeys(50, config, seed=1, start=0, rank=0, world=1)
    split = TrainConfig(batch_size=24, grad_accum_steps=2)
    parts = [iter(StepKeys(50, split, seed=1, start=5, rank=rank, world=3)) for rank in range(3)]
    for step in (5, 6):
        together = [key for _ in range(2) for part in parts for key in next(part)]
        assert together == whole.keys(step)


def test_every_epoch_sees_every_sample_once_in_another_order():
    keys = StepKeys(30, TrainConfig(batch_size=8), seed=1, start=0, rank=0, world=1)
    stream = [position for step in range(15) for position, _ in keys.keys(step)]
    epochs = np.array(stream).reshape(4, 30)
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_that_cannot_be_shared_names_the_nearest_that_can():
    with pytest.raises(UserError, match=r"batch_size is 10.*nearest that fits is 8"):
        StepKeys(30, TrainConfig(batch_size=10), seed=1, start=0, rank=0, world=4)


class Line(Task):
    """A task that fits y = 2x; its loss can be made to break."""

    def __init__(self, broken_at=None):
        torch.manual_seed(0)
        self.modules = {"line": nn.Linear(1, 1)}
        self.data = TensorDataset({"x": torch.linspace(-1, 1, 20)[:, None]})
        self.broken_at = broken_at

    def losses(self, batch, step):
        error = (self.modules["line"](batch["x"]) - 2 * batch["x"]).square().mean()
        yield "line", {"error": error * float("nan") if step == self.broken_at else error}

    def evaluate(self, models, step):
        return EvalResult({"slope": float(models["line"].weight)}, {"grid": torch.zeros(3, 4, 4)})

    def export(self, models):
        return Part("line", {}, Facts(), models["line"].state_dict())


def config_for(**changes):
    values = {"steps": 200, "batch_size": 10, "lr": 0.05, "ema_decay": None, "precision": "no", "tracker": "none"}
    return TrainConfig(**values | {"log_every": 20} | changes)


def run(task, config, folder):
    return train(task, config, StageFolder(folder), launch(config, folder), seed=0)


def test_the_loop_learns_logs_evaluates_and_leaves_a_checkpoint(tmp_path):
    config = config_for(evaluate_every=50)
    run(Line(), config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["slope"] for line in lines if "slope" in line][-1] == pytest.approx(2, abs=1e-2)
    assert [line["step"] for line in lines if "slope" in line] == [50, 100, 150, 200]
    assert [line["error"] for line in lines if "error" in line][-1] < 1e-3
    assert len(list((tmp_path / "samples").glob("grid-*.png"))) == 4


@pytest.mark.parametrize("interrupted", [False, True])
def test_training_ends_when_nothing_gets_better_and_keeps_the_best(tmp_path, interrupted, capsys):
    scores = {20: 3.0, 40: 1.0, 60: 2.0, 80: 1.5, 100: 0.5}

    class Scored(Line):
        def evaluate(self, models, step):
            return EvalResult({}, {}, score=scores[step])

    for steps in (50, 1000) if interrupted else (1000,):
        config = config_for(evaluate_every=20, patience=2, steps=steps, save_every=10)
        scores[50] = 9.0  # the end of the interrupted run is an evaluation too
        progress = run(Scored(), config, tmp_path)
    assert progress.step == (60 if interrupted else 80)
    assert StageFolder(tmp_path).part().facts.step == 40
    assert "evaluations were no better than 1 at step 40, whose model is exported" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(tmp_path):
    config = config_for(save_every=50)
    with pytest.raises(UserError, match=r"not finite at step 120.*--resume"):
        run(Line(broken_at=110), config, tmp_path)
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["step-000000100"]


def test_half_precision_without_a_gpu_is_refused_with_what_works():
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"train\.precision=fp16 needs a GPU"):
            launch(TrainConfig(precision="fp16"))


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("rcg.distributed.launch.get_available_trackers", list)
    for name in LOGGER_TYPE_TO_CLASS:
        with pytest.raises(UserError, match=f"pip install {name}, or choose"):
            launch(TrainConfig(tracker=name, precision="no"))


def test_a_tracker_that_accelerate_does_not_know_is_refused():
    with pytest.raises(UserError, match="did you mean 'wandb'"):
        launch(TrainConfig(tracker="wanbd", precision="no"))


@pytest.mark.slow
def test_a_compiled_network_trains_and_goes_on(toy_copy, tmp_path):
    path = write(tmp_path, rdm__train__compile=True)
    train_stage("rdm", path, mode=Mode.OVERWRITE)
    stage = train_stage("rdm", path, "rdm.train.steps=25", mode=Mode.RESUME)
    assert stage.part().facts.step == 25
