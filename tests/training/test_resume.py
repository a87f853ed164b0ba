"""A run that was killed and goes on ends with the weights of one that was never interrupted, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from rcg.core import checkpoint
from rcg.training.loop import latest_state
from tests.toy import ROOT, TOKENIZER, tool, write

LONG = {"steps": 120, "save_every": 7, "log_every": 3, "batch_size": 30, "lr": 1e-3}
"""200 images x 0.9 in batches of 30: epochs of 6 steps, so that checkpoints lie in the middle of one."""
ADVERSARIAL = {"steps": 20, "batch_size": 10, "adversarial_start": 5, "discriminator_width": 8}


def start(stage, path, *arguments):
    command = [sys.executable, str(ROOT / "tools" / f"{stage}.py"), str(path), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_state(folder, process, steps):
    """Wait until a checkpoint of at least `steps` steps is complete."""
    deadline = time.time() + 120
    while time.time() < deadline:
        state = latest_state(folder)
        if state is not None and int(state.name.split("-")[1]) >= steps:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    raise AssertionError("no checkpoint appeared")


def weights(path):
    return checkpoint.load(path).tensors


def prepared(folder, stage, **changes):
    """Write an experiment and train what comes before `stage`."""
    folder.mkdir()
    path = write(folder, **changes)
    if stage != "train_encoder":
        assert tool("train_encoder", path).returncode == 0
    return path


@pytest.mark.parametrize(
    ("stage", "section", "part"),
    [
        ("train_encoder", "encoder", "encoder"),
        ("train_autoencoder", "generator__autoencoder", "autoencoder"),
        ("train_rdm", "rdm", "rdm"),
        ("train_pixel", "generator", "dit"),
    ],
)
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, stage, section, part):
    if stage == "train_encoder":
        changes = {f"{section}__train__{key}": value for key, value in (LONG | {"steps": 40}).items()}
    else:
        changes = {f"{section}__train__{key}": value for key, value in LONG.items()}
    if stage == "train_autoencoder":
        changes |= {f"{section}__train__{key}": value for key, value in ADVERSARIAL.items()}
        changes = {section: TOKENIZER, **changes}
    whole = prepared(tmp_path / "whole", stage, **changes)
    assert tool(stage, whole).returncode == 0
    killed = prepared(tmp_path / "killed", stage, **changes)
    folder = tmp_path / "killed" / "run" / part
    process = start(stage, killed)
    # The kill comes at a moment that nothing in the run knows: some way into the steps after a checkpoint.
    wait_for_state(folder, process, steps=7)
    time.sleep(int.from_bytes(os.urandom(1), "big") / 255 * 0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    process.stdout.close()
    resumed = tool(stage, killed, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    expected = weights(tmp_path / "whole" / "run" / part / checkpoint.FILE)
    found = weights(folder / checkpoint.FILE)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps), "lines of lost steps stayed in the log"


def test_sigterm_writes_a_checkpoint_and_exits_cleanly(tmp_path):
    path = prepared(tmp_path / "a", "train_rdm", rdm__train__steps=100_000, rdm__train__save_every=20)
    folder = tmp_path / "a" / "run" / "rdm"
    process = start("train_rdm", path)
    wait_for_state(folder, process, steps=20)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "--resume goes on from there" in output
    stopped = int(latest_state(folder).name.split("-")[1])
    assert checkpoint.load(folder / checkpoint.FILE).facts["step"] == stopped
    assert len(list((folder / "state").iterdir())) == 1
    resumed = tool("train_rdm", path, f"rdm.train.steps={stopped + 5}", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert checkpoint.load(folder / checkpoint.FILE).facts["step"] == stopped + 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_process_group_is_survived_by_the_loaders(tmp_path, number):
    changes = {"encoder__train__steps": 100_000, "encoder__train__save_every": 5, "data__num_workers": 2}
    path = prepared(tmp_path / "a", "train_encoder", **changes)
    command = [sys.executable, str(ROOT / "tools" / "train_encoder.py"), str(path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    wait_for_state(tmp_path / "a" / "run" / "encoder", process, steps=5)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "--resume goes on from there" in output


def test_a_finished_run_that_is_resumed_stays_as_it_is(tmp_path):
    path = prepared(tmp_path / "a", "train_rdm")
    assert tool("train_rdm", path, "--resume").returncode == 0
    before = weights(tmp_path / "a" / "run" / "rdm" / checkpoint.FILE)
    assert tool("train_rdm", path, "--resume").returncode == 0
    after = weights(tmp_path / "a" / "run" / "rdm" / checkpoint.FILE)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_how_a_model_is_sampled_may_change_when_it_goes_on(tmp_path):
    path = prepared(tmp_path / "a", "train_rdm")
    part = tmp_path / "a" / "run" / "rdm" / checkpoint.FILE
    assert tool("train_rdm", path, "--resume").returncode == 0
    before = weights(part)
    done = tool("train_rdm", path, "rdm.sampler.steps=3", "rdm.guidance.scale=2", "--resume")
    assert done.returncode == 0, done.stderr
    found = checkpoint.load(part)
    assert (found.config["sampler"]["steps"], found.config["guidance"]["scale"]) == (3, 2)
    assert all(torch.equal(before[name], found.tensors[name]) for name in before)
