"""Every mistake gives one clear sentence and exit code 2, and touches nothing."""

import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from rcg.core import checkpoint
from tests.toy import process, tool, write


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A toy experiment with all three stages trained."""
    folder = tmp_path_factory.mktemp("trained")
    path = write(folder)
    for stage in ("train_encoder", "train_rdm", "train_pixel"):
        done = tool(stage, path)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the trained experiment that a test may damage."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return write(tmp_path)


def snapshot(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def refused(name, *arguments, folder, run=tool):
    """Run a tool that must refuse; return its one sentence."""
    before = snapshot(folder)
    done = run(name, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert snapshot(folder) == before
    complaints = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(complaints) == 1
    assert "Traceback" not in done.stderr
    return complaints[0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("encoder.name=moco_v4", "no encoder is called 'moco_v4'; did you mean 'moco_v3'"),
        ("generator.name=dti", "no generator is called 'dti'; did you mean 'dit'"),
        ("generator.widht=8", "generator.widht: unknown key; did you mean 'width'"),
        ("rdm.train.stepz=8", "rdm.train.stepz: unknown key; did you mean 'steps'"),
        ("rdm.process.schedule=cosin", "rdm.process.schedule: input should be 'linear'"),
        ("generator.depth=many", "generator.depth: input should be a valid integer"),
        ("generator.width=-16", "generator.width: input should be greater than 0, got -16"),
        ("data.image_size=-1", "data.image_size: input should be greater than 0, got -1"),
        ("generator.depth", "an override looks like rdm.width=512"),
        ("seed.a=1", "cannot override seed.a"),
    ],
)
def test_a_configuration_that_is_not_one_is_refused(override, said, tmp_path):
    path = write(tmp_path, seed=3)
    assert said in refused("train_encoder", path, override, folder=tmp_path)


def test_a_mistake_ends_a_real_process_with_code_2(tmp_path):
    said = refused("train_encoder", write(tmp_path), "rdm.widht=1", folder=tmp_path, run=process)
    assert "did you mean 'width'" in said


def test_a_missing_file_and_a_file_that_is_no_yaml_are_named(tmp_path):
    write(tmp_path)
    assert "there is no configuration" in refused("train_rdm", tmp_path / "toi.yaml", folder=tmp_path)
    (tmp_path / "bad.yaml").write_text("data: {name: digits")
    assert "bad.yaml is not a YAML file" in refused("train_rdm", tmp_path / "bad.yaml", folder=tmp_path)


def test_a_missing_folder_and_a_folder_without_images_are_named(tmp_path):
    path = write(tmp_path, data={"name": "image_folder", "root": str(tmp_path / "none"), "image_size": 16})
    assert str(tmp_path / "none") in refused("train_encoder", path, folder=tmp_path)
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("train_encoder", path, f"data.root={tmp_path / 'empty'}", folder=tmp_path)


def test_a_corrupt_image_is_named_and_skipped(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(20):
        Image.new("RGB", (20, 24), (i * 12, 0, 0)).save(images / f"{i}.png")
    (images / "broken.png").write_bytes((images / "0.png").read_bytes()[:40])
    path = write(tmp_path, data={"name": "image_folder", "root": str(images), "image_size": 16})
    done = process("train_encoder", path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("UserWarning") == 1
    assert "broken.png" in done.stderr


def test_the_rdm_is_not_trained_before_there_is_an_encoder(tmp_path):
    assert "run tools/train_encoder.py" in refused("train_rdm", write(tmp_path), folder=tmp_path)


def test_a_truncated_checkpoint_is_named(copy, tmp_path):
    path = tmp_path / "run" / "rdm" / checkpoint.FILE
    path.write_bytes(path.read_bytes()[:-100])
    said = refused("sample", tmp_path / "run", "--out", tmp_path / "out", folder=tmp_path)
    assert f"{path} is truncated" in said


def test_an_rdm_of_another_encoder_is_refused_in_training_and_in_sampling(copy, tmp_path):
    assert tool("train_encoder", copy, "--overwrite", "seed=5").returncode == 0
    said = refused("train_pixel", copy, "--overwrite", folder=tmp_path)
    assert "train the RDM again" in said
    shutil.rmtree(tmp_path / "run" / "rdm")
    assert tool("train_rdm", copy).returncode == 0
    said = refused("sample", tmp_path / "run", "--out", tmp_path / "out", folder=tmp_path)
    assert "the generator paints from representations of moco_v3" in said


@pytest.mark.parametrize("stage", ["train_encoder", "train_rdm", "train_pixel"])
def test_a_folder_that_holds_a_run_is_not_overwritten_by_accident(copy, tmp_path, stage):
    assert "go on with --resume" in refused(stage, copy, folder=tmp_path)
    other = {"train_encoder": "encoder.train.lr=0.5", "train_rdm": "rdm.depth=3", "train_pixel": "generator.depth=3"}
    said = refused(stage, copy, other[stage], "--resume", folder=tmp_path)
    assert "holds another experiment" in said
    assert other[stage].split("=")[0] in said


def test_a_folder_from_before_a_key_was_known_has_its_default(copy, tmp_path):
    path = tmp_path / "run" / "dit" / "config.yaml"
    values = yaml.safe_load(path.read_text())
    del values["generator"]["grad_checkpointing"]
    path.write_text(yaml.safe_dump(values))
    assert "holds another experiment (generator.grad_checkpointing: False -> True)" in refused(
        "train_pixel", copy, "generator.grad_checkpointing=true", "--resume", folder=tmp_path
    )
    assert "already holds step" in refused("train_pixel", copy, folder=tmp_path)


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    path = write(tmp_path)
    (tmp_path / "run" / "encoder").mkdir(parents=True)
    (tmp_path / "run" / "encoder" / "thesis.txt").write_text("mine")
    assert "not an experiment's" in refused("train_encoder", path, folder=tmp_path)


def test_an_encoder_that_changed_since_its_training_is_refused(copy, tmp_path):
    assert "encoder.depth: 1 -> 2" in refused("train_rdm", copy, "encoder.depth=2", "--overwrite", folder=tmp_path)


def test_a_batch_that_cannot_be_shared_is_refused(copy, tmp_path):
    said = refused("train_rdm", copy, "rdm.train.grad_accum_steps=3", "--overwrite", folder=tmp_path)
    assert "nearest that fits is 33" in said


def test_classes_are_refused_where_there_are_none(copy, tmp_path):
    said = refused("sample", tmp_path / "run", "--class", 3, "--out", tmp_path / "out", folder=tmp_path)
    assert "neither the generator nor the RDM was trained on classes" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num", "0"], "expected a whole number above 0, got '0'"),
        (["--guidance", "-1"], "expected a number, 0 or above, got '-1'"),
        (["--steps", "1001"], "the process has 1000 noise levels"),
        (["--generator", "dut"], "no generator 'dut'; did you mean 'dit'"),
        (["--gudance", "2"], "unrecognized arguments"),
    ],
)
def test_a_wrong_argument_of_sampling_is_refused(trained, tmp_path, arguments, said):
    assert said in refused("sample", trained / "run", "--out", tmp_path / "out", *arguments, folder=trained)


def test_a_missing_run_is_named(trained, tmp_path):
    said = refused("sample", trained / "rum", "--out", tmp_path / "out", folder=trained)
    assert "did you mean" in said


def test_swapping_the_generator_leaves_the_other_ones_settings_out(tmp_path):
    from rcg import config

    path = write(tmp_path)
    values = yaml.safe_load(path.read_text())
    values["generator"]["name"] = "something_else"
    path.write_text(yaml.safe_dump(values))
    experiment = config.load(path, ["generator.name=dit"])
    assert experiment.generator.width == 384
    assert experiment.generator.train.steps == 20


def test_help_lists_the_sections():
    done = tool("train_rdm", "--help")
    assert done.returncode == 0
    for section in ("data:", "encoder:", "rdm:", "generator:", "generator.train:", "condition_dropout"):
        assert section in done.stdout
