"""A run that was killed and goes on ends with the weights of one that was never interrupted, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image, ImageOps

from rcg.core.errors import UserError
from rcg.encoding.run_folder import Mode, StageFolder
from tests.line import log
from tests.toy import ROOT, TOKENIZER, snapshot, tool, train, write

LONG = {"steps": 120, "save_every": 7, "log_every": 3, "batch_size": 30, "lr": 1e-3}
"""About 180 images in batches of 30: epochs of 6 steps, so that checkpoints lie in the middle of one."""
BLOCKS = {
    "generator__depth": 3,
    "generator__value_residual": True,
    "generator__early_exit": {"block": 1},
    "generator__routing": {"first": 2, "last": 2},
}
ADVERSARIAL = {"steps": 20, "batch_size": 10, "adversarial_start": 5, "discriminator_width": 8}
ADVERSARIAL |= {"decoder_noise": 0.3, "align": {"hidden": 8}}


def start(stage, path, **options):
    command = [sys.executable, str(ROOT / "tools" / f"{stage}.py"), str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def wait_for_state(folder, process, steps):
    """Wait until a checkpoint of at least `steps` steps is complete."""
    deadline = time.time() + 120
    while time.time() < deadline:
        states = StageFolder(folder).state_files()
        if states and StageFolder.step_of(states[0]) >= steps:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    raise AssertionError("no checkpoint appeared")


@pytest.fixture
def prepared(toy_run):
    """Write an experiment into a new folder; its encoder is that of the toy run, unless it is what is trained."""

    def prepare(folder, stage, **changes):
        folder.mkdir()
        if stage != "encoder":
            shutil.copytree(toy_run / "run" / "encoder", folder / "run" / "encoder")
        return write(folder, **changes)

    return prepare


@pytest.mark.parametrize(
    ("stage", "section", "name"),
    [
        ("encoder", "encoder", "train_encoder"),
        ("autoencoder", "generator__autoencoder", "train_autoencoder"),
        ("rdm", "rdm", "train_rdm"),
        ("generator", "generator", "train_pixel"),
    ],
)
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(prepared, tmp_path, stage, section, name):
    if stage == "encoder":
        changes = {f"{section}__train__{key}": value for key, value in (LONG | {"steps": 40}).items()}
    else:
        changes = {f"{section}__train__{key}": value for key, value in LONG.items()}
    if stage == "rdm":
        changes |= {"rdm__process": {"name": "meanflow"}}
    if stage == "generator":
        changes |= BLOCKS
    if stage == "autoencoder":
        changes |= {f"{section}__train__{key}": value for key, value in ADVERSARIAL.items()}
        changes = {section: TOKENIZER, **changes}
    if stage == "generator":
        changes["generator__perceptual"] = {}
    whole = train(stage, prepared(tmp_path / "whole", stage, **changes))
    killed = prepared(tmp_path / "killed", stage, **changes)
    folder = tmp_path / "killed" / "run" / whole.name
    process = start(name, killed)
    # The kill comes at a moment that nothing in the run knows: some way into the steps after a checkpoint.
    wait_for_state(folder, process, steps=7)
    time.sleep(int.from_bytes(os.urandom(1), "big") / 255 * 0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    process.stdout.close()
    resumed = train(stage, killed, mode=Mode.RESUME)
    assert resumed.path == folder
    expected, weights = whole.part().tensors, resumed.part().tensors
    assert weights.keys() == expected.keys()
    for key in expected:
        assert torch.equal(weights[key], expected[key]), key
    assert log(folder) == log(whole.path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_process_group_is_survived_by_the_loaders(prepared, tmp_path, number):
    changes = {"encoder__train__steps": 100_000, "encoder__train__save_every": 5, "data__num_workers": 2}
    path = prepared(tmp_path / "a", "encoder", **changes)
    stage = StageFolder(tmp_path / "a" / "run" / "encoder")
    process = start("train_encoder", path, start_new_session=True)
    wait_for_state(stage.path, process, steps=5)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "--resume goes on from there" in output
    stopped = stage.step_of(stage.state_files()[0])
    assert stage.part().facts.step == stopped
    resumed = tool("train_encoder", path, f"encoder.train.steps={stopped + 5}", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert stage.part().facts.step == stopped + 5


def test_an_error_while_loaders_run_ends_the_process_with_its_code(prepared, tmp_path):
    path = prepared(tmp_path / "a", "encoder", data__num_workers=2)
    breaking = (
        "import runpy, sys; from rcg.training.tasks.encoder import EncoderTask\n"
        "def losses(self, batch, step): raise RuntimeError('an illegal memory access')\n"
        "EncoderTask.losses = losses\n"
        f"sys.argv = ['train_encoder.py', {str(path)!r}]\n"
        f"runpy.run_path({str(ROOT / 'tools' / 'train_encoder.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", breaking], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "an illegal memory access" in done.stderr


def test_a_finished_run_that_is_resumed_stays_as_it_is(toy_copy, tmp_path):
    stage = StageFolder(tmp_path / "run" / "rdm")
    files = [stage.checkpoint, stage.log, *stage.state_files(), *stage.samples.glob("*")]
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}
    train("rdm", toy_copy, mode=Mode.RESUME)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files} == before


def test_sampling_settings_may_change_when_a_training_is_resumed(toy_copy, tmp_path):
    before = StageFolder(tmp_path / "run" / "rdm").part()
    changes = ("rdm.sampler.steps=3", "rdm.guidance.scale=2")
    after = train("rdm", toy_copy, *changes, mode=Mode.RESUME).part()
    assert (after.config["sampler"]["steps"], after.config["guidance"]["scale"]) == (3, 2)
    assert all(torch.equal(value, after.tensors[name]) for name, value in before.tensors.items())


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A folder with `pictures`, and `run`, whose encoder was trained on them; nobody may change it."""
    folder = tmp_path_factory.mktemp("trained")
    root = folder / "pictures"
    root.mkdir()
    for number in range(20):
        Image.new("RGB", (16, 16), (10 * number, 0, 0)).save(root / f"{number}.bmp")
    data = {"name": "image_folder", "root": str(root), "image_size": 16, "num_workers": 0}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        train("encoder", write(folder, data=data, encoder__train__steps=2))
    return folder


@pytest.fixture
def trained_on_pictures(trained_once, tmp_path, monkeypatch):
    """The configuration of a copy of it in `tmp_path`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("pictures", "run"):
        shutil.copytree(trained_once / name, tmp_path / name)
    data = {"name": "image_folder", "root": str(tmp_path / "pictures"), "image_size": 16, "num_workers": 0}
    return write(tmp_path, data=data)


def test_a_training_is_resumed_on_the_same_pictures_by_another_path(trained_on_pictures, tmp_path, monkeypatch):
    (tmp_path / "pictures").rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for step, root in enumerate((tmp_path / "link", "moved"), start=3):
        changes = (f"data.root={root}", f"encoder.train.steps={step}")
        assert train("encoder", trained_on_pictures, *changes, mode=Mode.RESUME).part().facts.step == step


def inverted(root):
    for path in root.iterdir():
        ImageOps.invert(Image.open(path)).save(path)


def grown(root):
    shutil.copy(root / "0.bmp", root / "99.bmp")


@pytest.mark.parametrize("change", [inverted, grown])
def test_a_training_is_not_resumed_on_other_pictures(trained_on_pictures, tmp_path, change):
    change(tmp_path / "pictures")
    before = snapshot(tmp_path / "run")
    with pytest.raises(UserError, match=r"was trained on other images than .*rsync -a"):
        train("encoder", trained_on_pictures, "encoder.train.steps=9", mode=Mode.RESUME)
    assert snapshot(tmp_path / "run") == before


def test_a_damaged_model_is_written_again_from_the_state(prepared, tmp_path):
    path = prepared(tmp_path / "a", "rdm", rdm__train__steps=6)
    stage = train("rdm", path)
    with stage.checkpoint.open("r+b") as file:
        file.truncate(1000)
    done = tool("train_rdm", path, "rdm.train.steps=8", "--resume")
    assert done.returncode == 0, done.stderr
    assert stage.part().facts.step == 8


@pytest.mark.parametrize("content", ['{"facts": {"x": 1}}', '{"starts": 3}', "[]", "{"])
def test_records_of_another_version_stop_nothing(prepared, tmp_path, content):
    path = prepared(tmp_path / "a", "rdm", rdm__train__steps=4)
    stage = train("rdm", path)
    stage.record.write_text(content)
    stage.checkpoint.unlink()
    done = tool("train_rdm", path, "rdm.train.steps=6", "--resume")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(stage.record.read_text())["starts"]) == 1
