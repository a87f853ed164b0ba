"""Commands that are killed at random moments, or find a full disk: nothing is lost, and the same command goes on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from rcg.core import checkpoint
from rcg.encoding.run_folder import RunFolder
from tests.line import log
from tests.toy import ROOT, TOKENIZER, images, write

pytestmark = pytest.mark.slow

TRAIN = {"save_every": 7, "log_every": 3, "evaluate_every": 20, "batch_size": 16}
JUDGED = ["--inception", "none", "--resamples", "2"]
SEED = int(os.environ.get("RCG_KILL_SEED", time.time_ns() % 10**6))
"""A campaign can be repeated: pytest prints the seed of one that failed."""


class Running:
    """A tool at work in a fork of the nursery."""

    def __init__(self, nursery: subprocess.Popen, out: Path) -> None:
        self.nursery, self.out, self.id = nursery, out, int(nursery.stdout.readline())

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.id, number)

    def wait(self) -> int:
        """Return the exit code, that of a shell where a signal has ended the process."""
        code = os.waitstatus_to_exitcode(int(self.nursery.stdout.readline()))
        return 128 - code if code < 0 else code

    def text(self) -> str:
        return self.out.read_text(errors="replace")


@pytest.fixture(scope="module")
def nursery():
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(Path(__file__).with_name("nursery.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def ask(nursery, out, tool, argv, limit=None) -> Running:
    """Start a tool."""
    request = {"tool": str(ROOT / "tools" / f"{tool}.py"), "argv": argv, "out": str(out), "limit": limit}
    nursery.stdin.write(json.dumps(request) + "\n")
    nursery.stdin.flush()
    return Running(nursery, out)


@pytest.fixture
def start(nursery, tmp_path):
    """Return a function that starts a tool."""

    def run(tool, *argv, limit=None):
        return ask(nursery, tmp_path / "output.txt", tool, [str(text) for text in argv], limit)

    return run


def configured(folder, **changes):
    folder.mkdir(exist_ok=True)
    trains = {
        f"{stage}__train__{key}": value for stage in ("encoder", "rdm", "generator") for key, value in TRAIN.items()
    }
    steps = {"encoder__train__steps": 24, "rdm__train__steps": 120, "generator__train__steps": 60}
    tokenizer = {**TOKENIZER, "name": "kl"}
    tokenizer = {key: value for key, value in tokenizer.items() if key != "quantizer"}
    tokenizer["train"] = tokenizer["train"] | TRAIN | {"steps": 24, "perceptual": "none"}
    settings = trains | steps | {"data__limit": 120, "generator__autoencoder": tokenizer, "generator__patch": 2}
    return write(folder, **settings | changes)


STAGES = {"encoder": "train_encoder", "autoencoder": "train_autoencoder", "rdm": "train_rdm", "dit": "train_pixel"}
COMMANDS = {
    **{name: (tool, ["CONFIG", "--resume"], 7) for name, tool in STAGES.items()},
    "cache": ("cache", ["CONFIG"], 5),
    "evaluate": ("evaluate", ["RUN", "--num", "24", "--save-images", "--out", "RUN/judged", *JUDGED], 6),
    "sample": ("sample", ["RUN", "--num", "48", "--batch-size", "8", "--save-images", "--out", "RUN/out"], 6),
    "compare": ("compare", ["CONFIG", "--arms", "none", "generated", "--num", "16", *JUDGED], 5),
}
"""By name: the tool, its arguments, and how often it is killed; 50 times in all."""


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory):
    """The folder of a run that nothing interrupts, and a copy of it as it was before each command, with its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    path = configured(folder / "run")
    run = folder / "run" / "run"
    before, seconds = {}, {}
    for name in ("encoder", "autoencoder", "cache", "rdm", "dit", "evaluate", "sample", "compare"):
        before[name] = folder / f"before-{name}"
        if run.exists():
            shutil.copytree(run, before[name])
        tool, argv, _ = COMMANDS[name]
        began = time.time()
        running = ask(nursery, folder / "output.txt", tool, filled_in(argv, path, run))
        assert running.wait() == 0, running.text()
        seconds[name] = time.time() - began
    return run, before, seconds


def filled_in(argv, path, run):
    """Return the arguments of a command for an experiment and its run."""
    return [str(path) if text == "CONFIG" else text.replace("RUN", str(run)) for text in argv]


def leftovers(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".writing-")]


def weights(run, stage):
    return checkpoint.load(run / stage / "model.safetensors").tensors


def check_stage(run, expected, stage):
    found, wanted = weights(run, stage), weights(expected, stage)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert log(run / stage) == log(expected / stage)


def without_time(value):
    """Return JSON values without what takes time, and without paths."""
    if isinstance(value, dict):
        skipped = ("seconds", "images_per_second", "cost", "run", "path", "folder")
        return {key: without_time(item) for key, item in value.items() if key not in skipped}
    return [without_time(item) for item in value] if isinstance(value, list) else value


def check(name, run, expected):
    if name in STAGES:
        check_stage(run, expected, name)
    elif name == "cache":
        wanted = sorted(path.relative_to(expected) for path in (expected / "cache").rglob("*.safetensors"))
        assert sorted(path.relative_to(run) for path in (run / "cache").rglob("*.safetensors")) == wanted
        for path in wanted:  # not by bytes: safetensors writes the entries of a header in any order
            (found, facts), (tensors, names) = (checkpoint.load_tensors(r / path) for r in (run, expected))
            assert facts == names
            assert found.keys() == tensors.keys()
            assert all(torch.equal(found[key], value) for key, value in tensors.items())
    elif name == "compare":
        found, wanted = (json.loads((r / "comparison-dit" / "compare.json").read_text()) for r in (run, expected))
        for arm, values in without_time(wanted)["arms"].items():
            assert without_time(found)["arms"][arm]["scores"] == values["scores"]
        check_stage(run, expected, "dit-none")
    else:
        # An evaluation names its folder by what decides its figures.
        pattern = {"evaluate": "judged/*/images", "sample": "out/images"}[name]
        found, wanted = (next(r.glob(pattern)).parent for r in (run, expected))
        pairs = list(zip(images(found), images(wanted), strict=True))
        assert pairs
        assert all((a == b).all() for a, b in pairs)
        if name == "evaluate":
            reports = [json.loads((folder / "report.json").read_text()) for folder in (found, wanted)]
            assert without_time(reports[0])["scores"] == without_time(reports[1])["scores"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(whole, start, tmp_path, name):
    expected, before, seconds = whole
    tool, argv, kills = COMMANDS[name]
    moments = random.Random(f"{SEED} {name}")
    path = configured(tmp_path / "killed")
    run = tmp_path / "killed" / "run"
    killed = 0
    while killed < kills:
        if not run.exists() and before[name].exists():
            shutil.copytree(before[name], run)
        running = start(tool, *filled_in(argv, path, run))
        time.sleep(moments.uniform(0.1, 1) * seconds[name])
        running.signal(signal.SIGKILL)
        code = running.wait()
        if code == 0:  # it was ready before: the next one begins again
            check(name, run, expected)
            shutil.rmtree(run)
            continue
        assert code == 128 + signal.SIGKILL, f"seed {SEED}: {running.text()}"
        killed += 1
    if not run.exists() and before[name].exists():
        shutil.copytree(before[name], run)
    last = start(tool, *filled_in(argv, path, run))
    assert last.wait() == 0, f"seed {SEED}: {last.text()}"
    check(name, run, expected)
    assert leftovers(run) == [], f"seed {SEED}"


def wait_for(path, running):
    deadline = time.time() + 60
    while not list(path.parent.glob(path.name)):
        assert time.time() < deadline, running.text()
        time.sleep(0.01)


@pytest.fixture
def training(whole, tmp_path):
    """An RDM that would be trained for very long, over the encoder of the whole run."""
    path = configured(tmp_path / "long", rdm__train__evaluate_every=None)
    shutil.copytree(whole[1]["rdm"], tmp_path / "long" / "run")
    return path, RunFolder(tmp_path / "long" / "run").rdm


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT], [signal.SIGINT, signal.SIGINT]]
)
def test_signals_end_a_training_with_their_code_and_nothing_is_torn(training, start, numbers):
    path, stage = training
    running = start("train_rdm", path, "rdm.train.steps=100000")
    wait_for(stage.states / "step-*", running)
    for number in numbers:
        running.signal(number)
        time.sleep(0.002)
    assert running.wait() == 128 + numbers[0], running.text()
    assert running.text().count("stopped at step") + running.text().count("interrupted") == 1
    stopped = stage.step_of(stage.state_files()[0])
    assert stage.part().facts.step in (stopped, *map(stage.step_of, stage.state_files()))
    more = start("train_rdm", path, f"rdm.train.steps={stopped + 3}", "--resume")
    assert more.wait() == 0, more.text()
    assert leftovers(stage.path) == []


def test_a_full_disk_ends_a_training_with_one_sentence_and_the_last_state_stays(whole, training, start):
    path, stage = training
    running = start("train_rdm", path)
    wait_for(stage.states / "step-*", running)
    running.signal(signal.SIGKILL)
    running.wait()
    before = {file: file.read_bytes() for file in (*stage.state_files(), stage.checkpoint) if file.exists()}
    full = start("train_rdm", path, "--resume", limit=2000)
    assert full.wait() == 2, full.text()
    assert full.text().count("error: ") == 1
    assert "Traceback" not in full.text()
    assert {file: file.read_bytes() for file in before} == before
    last = start("train_rdm", path, "--resume")
    assert last.wait() == 0, last.text()
    found, wanted = stage.part().tensors, weights(whole[0], "rdm")
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_an_output_that_is_deleted_while_it_is_written_gives_one_sentence(training, start):
    path, stage = training
    running = start("train_rdm", path, "rdm.train.steps=100000")
    wait_for(stage.states / "step-*", running)
    while stage.path.exists():
        shutil.rmtree(stage.path, ignore_errors=True)
    assert running.wait() == 2, running.text()
    assert running.text().count("error: ") == 1
    assert "Traceback" not in running.text()


def test_a_second_command_in_a_run_is_refused_while_the_first_one_goes_on(training, start, tmp_path):
    path, stage = training
    running = start("train_rdm", path, "rdm.train.steps=100000")
    wait_for(stage.states / "step-*", running)
    command = [sys.executable, str(ROOT / "tools" / "train_rdm.py"), str(path), "--overwrite"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert second.returncode == 2
    assert f"train_rdm.py {path} rdm.train.steps=100000 (process {running.id} on " in second.stderr
    running.signal(signal.SIGTERM)
    assert running.wait() == 128 + signal.SIGTERM


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_a_signal_to_the_launcher_alone_reaches_the_training(training, launcher):
    path, stage = training
    program = str(ROOT / "tools" / "train_rdm.py")
    command = {
        "accelerate": ["-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1", program],
        "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", program],
    }[launcher]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    arguments = [str(path), "rdm.train.steps=100000"]
    with subprocess.Popen([sys.executable, *command, *arguments], env=environment, **pipes) as process:
        deadline = time.time() + 120
        while not stage.state_files():
            assert time.time() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)  # ends when the training has closed the pipe too
    assert process.returncode != 0
    assert "--resume goes on from there" in output
    assert stage.part().facts.step == stage.step_of(stage.state_files()[0])
