"""The loop's own parts: learning rate, moving average, shares of a batch, losses that are not finite."""

import math
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from rcg.config import TrainConfig
from rcg.core.contracts import EvalResult
from rcg.core.errors import Stopped, UserError
from rcg.data.loading import StepKeys
from rcg.distributed.launch import launch
from rcg.encoding.run_folder import Mode, StageFolder
from rcg.training.ema import EMA
from rcg.training.loop import learning_rate
from tests.line import DeathError, Line, config_for, die, log, run
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


def test_by_wsd_the_rate_is_constant_and_falls_in_a_line_at_the_end():
    config = TrainConfig(lr=2.0, steps=100, warmup=10, schedule="wsd")
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[9:81] == [2.0] * 72
    assert rates[80:] == pytest.approx([2.0 * (100 - step) / 20 for step in range(80, 100)])
    whole = TrainConfig(lr=2.0, steps=4, schedule="wsd", decay=1.0)
    assert [learning_rate(whole, step) for step in range(4)] == pytest.approx([2.0, 1.5, 1.0, 0.5])
    short = TrainConfig(lr=2.0, steps=2, schedule="wsd")  # a fifth of two steps rounds to none
    assert [learning_rate(short, step) for step in range(2)] == [2.0, 2.0]
    assert learning_rate(short, 2) == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"decay": 0.5}, "decay is the last part of schedule: wsd"),
        ({"schedule": "wsd", "patience": 2, "evaluate_every": 5}, "patience ends a training before schedule: wsd"),
    ],
)
def test_what_does_not_go_with_a_schedule_is_refused(changes, sentence):
    with pytest.raises(ValidationError, match=sentence):
        TrainConfig(**changes)


@pytest.mark.parametrize("shorter", [20, 26])
def test_a_run_by_wsd_that_is_made_longer_is_one_that_was_planned_so(tmp_path, shorter, capsys):
    """Finished, or stopped in its decay: the steps of the decay are taken again at the full rate."""
    config = config_for(steps=40, save_every=5, log_every=3, schedule="wsd", ema_decay=0.9, evaluate_every=20)
    run(Line(), config, tmp_path / "whole")
    plan = config.model_copy(update={"steps": shorter})
    if shorter > 20:
        with pytest.raises(DeathError):
            run(Line({25: die}), plan, tmp_path / "longer")
    else:
        run(Line(), plan, tmp_path / "longer")
    first = StageFolder(tmp_path / "longer")
    assert plan.decay_start in map(first.step_of, first.state_files())
    run(Line(), config, tmp_path / "longer")
    assert f"trying step-{plan.decay_start:09d}.safetensors" in capsys.readouterr().err
    whole, longer = (StageFolder(tmp_path / name) for name in ("whole", "longer"))
    assert all(torch.equal(value, longer.part().tensors[key]) for key, value in whole.part().tensors.items())
    assert log(longer.path) == log(whole.path)
    assert [path.name for path in longer.state_files()] == [path.name for path in whole.state_files()]
    assert list(map(whole.step_of, whole.state_files())) == [40, 35, 32]


def test_without_the_state_before_its_decay_a_run_by_wsd_is_not_made_longer(tmp_path):
    config = config_for(steps=20, schedule="wsd")
    run(Line(), config, tmp_path)
    StageFolder(tmp_path).state_file(16).unlink()
    with pytest.raises(UserError, match="of a shorter plan, by which the learning rate falls from step 16 on"):
        run(Line(), config.model_copy(update={"steps": 40}), tmp_path)


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


def test_the_loop_learns_logs_evaluates_and_leaves_a_checkpoint(tmp_path):
    config = config_for(evaluate_every=50)
    run(Line(), config, tmp_path)
    lines = log(tmp_path)
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


def not_a_number(_):
    return float("nan")


def spoil(task):
    """Break a weight without a trace in the loss."""
    task.modules["line"].bias.data.fill_(torch.inf)
    return 0.0


@pytest.mark.parametrize(
    ("step", "breaks", "changes", "what"),
    [
        (110, not_a_number, {}, r"the loss is not finite at step 120 .*nan"),
        (199, not_a_number, {"log_every": 1000}, "the loss is not finite at step 200"),
        (120, not_a_number, {"log_every": 1000}, "the loss is not finite at step 150"),
        (199, spoil, {"log_every": 1000}, r"not finite at step 200"),
    ],
)
def test_what_is_not_finite_ends_the_run_and_is_not_saved(tmp_path, step, breaks, changes, what):
    config = config_for(save_every=50, **changes)
    with pytest.raises(UserError, match=what) as caught:
        run(Line({step: breaks}), config, tmp_path)
    last = 100 if step < 150 else 150
    assert f"the state of step {last} is kept: go on from there with --resume and a lower train.lr" in str(caught.value)
    stage = StageFolder(tmp_path)
    assert [stage.step_of(path) for path in stage.state_files()] == [last, last - 50]
    assert stage.part().facts.step == last
    assert torch.stack([tensor.sum() for tensor in stage.part().tensors.values()]).isfinite().all()
    assert run(Line(), config, tmp_path).step == 200, "the advice does not help"


def test_without_a_state_the_advice_is_to_start_again(tmp_path):
    with pytest.raises(UserError, match=r"nothing was saved before: start again with --overwrite and a lower train.lr"):
        run(Line({3: not_a_number}), config_for(), tmp_path)
    assert not StageFolder(tmp_path).is_trained


@pytest.mark.parametrize("step", [20, 40])
def test_an_evaluation_that_fails_loses_no_step_and_is_made_up_for(tmp_path, step):
    class Failing(Line):
        def evaluate(self, models, step):
            raise RuntimeError("selected index k out of range")

    config = config_for(steps=40, evaluate_every=step)
    steps = []

    class Counting(Line):
        def losses(self, batch, step):
            steps.append(step)
            return super().losses(batch, step)

    with pytest.raises(RuntimeError, match="out of range"):
        run(Failing(), config, tmp_path)
    assert StageFolder(tmp_path).part().facts.step == step
    run(Counting(), config, tmp_path)
    assert steps == list(range(step, 40))
    assert [line["step"] for line in log(tmp_path) if "slope" in line] == sorted({step, 40})


@pytest.mark.parametrize(("killed", "ema_decay"), [(0, None), (10, 0.9), (15, None), (27, 0.9), (29, None)])
def test_a_killed_run_has_the_log_and_the_weights_of_an_uninterrupted_one(tmp_path, killed, ema_decay):
    config = config_for(steps=30, save_every=8, log_every=3, evaluate_every=10, ema_decay=ema_decay)
    run(Line(), config, tmp_path / "whole")
    with pytest.raises(DeathError):
        run(Line({killed: die}), config, tmp_path / "killed")
    with (tmp_path / "killed" / "log.jsonl").open("a") as file:
        file.write('{"step": 29, "sec')  # the kernel stopped the process in the middle of a line
    run(Line(), config, tmp_path / "killed")
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    whole, resumed = (StageFolder(tmp_path / name) for name in ("whole", "killed"))
    assert all(torch.equal(value, resumed.part().tensors[key]) for key, value in whole.part().tensors.items())
    assert [path.name for path in resumed.state_files()] == [path.name for path in whole.state_files()]


def test_a_training_that_is_over_writes_nothing_when_it_is_resumed(tmp_path):
    for config in (config_for(steps=20), config_for(steps=20, patience=1, evaluate_every=2)):
        folder = tmp_path / str(config.patience)
        run(Line(), config, folder)  # a line has no score, so that patience ends at once
        before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()}
        run(Line(), config, folder)
        after = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()}
        assert after == before


def send(*numbers):
    def kill(_):
        for number in numbers:
            os.kill(os.getpid(), number)

    return kill


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(tmp_path, number):
    with pytest.raises(Stopped, match="stopped at step 14 of 20; --resume goes on from there") as caught:
        run(Line({13: send(number)}), config_for(steps=20), tmp_path)
    assert caught.value.number == number
    assert StageFolder(tmp_path).part().facts.step == 14
    assert run(Line(), config_for(steps=20), tmp_path).step == 20


def test_a_second_interrupt_ends_the_run_at_once_and_a_second_request_does_not(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Line({13: send(signal.SIGINT, signal.SIGINT)}), config_for(steps=20, save_every=10), tmp_path)
    assert StageFolder(tmp_path).part().facts.step == 10
    with pytest.raises(Stopped, match="stopped at step 14 "):
        run(Line({13: send(signal.SIGTERM, signal.SIGTERM)}), config_for(steps=20), tmp_path)


def test_a_program_that_was_told_to_ignore_hangups_goes_on(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(Line({3: send(signal.SIGHUP)}), config_for(steps=20), tmp_path).step == 20
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_end_of_the_launcher_is_a_request_to_stop(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(Stopped, match="stopped at step 14 of") as caught:
        run(Line({13: lambda _: monkeypatch.setattr(os, "getppid", lambda: 1)}), config_for(steps=20), tmp_path)
    assert caught.value.number == signal.SIGTERM
    monkeypatch.setenv("LOCAL_RANK", "0")  # torchrun passes signals on itself
    assert run(Line({16: lambda _: monkeypatch.undo()}), config_for(steps=20), tmp_path).step == 20


def test_no_loader_process_outlives_an_error(tmp_path):
    before = set(multiprocessing.active_children())
    with pytest.raises(DeathError):
        run(Line({3: die}), config_for(), tmp_path, num_workers=2)
    assert set(multiprocessing.active_children()) == before


def test_figures_that_are_not_finite_are_null_in_the_log(tmp_path):
    class Odd(Line):
        def evaluate(self, models, step):
            return EvalResult({"uniformity": float("nan"), "rep_fd": float("inf"), "rank": 2.0}, {})

    run(Odd(), config_for(steps=1), tmp_path)
    assert log(tmp_path)[-1] == {"step": 1, "uniformity": None, "rep_fd": None, "rank": 2.0}


def test_names_of_a_compiled_module_are_those_of_the_module(tmp_path):
    class Compiled(Line):
        def __init__(self):
            super().__init__()
            self.modules = {"line": torch.compile(self.modules["line"], backend="eager")}

    run(Compiled(), config_for(steps=2), tmp_path)
    assert set(StageFolder(tmp_path).part().tensors) == {"weight", "bias"}
    assert run(Line(), config_for(steps=3), tmp_path).step == 3


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
