"""Every mistake gives one clear sentence and exit code 2, and changes nothing on disk."""

import shutil

import pytest
import yaml
from PIL import Image

from rcg.config import load_experiment
from rcg.encoding.run_folder import Mode, RunFolder
from tests.toy import complaint, process, snapshot, tool, train, write


def refused(name, *arguments, folder, run=tool):
    """Run a tool that must refuse; return its one sentence."""
    before = snapshot(folder)
    sentence = complaint(run(name, *arguments))
    assert snapshot(folder) == before
    return sentence


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("encoder.name=moco_v4", "no encoder is called 'moco_v4'; did you mean 'moco_v3'"),
        ("generator.name=dti", "no generator is called 'dti'; did you mean 'dit'"),
        ("generator.widht=8", "generator.widht: unknown key; did you mean 'width'"),
        ("rdm.train.stepz=8", "rdm.train.stepz: unknown key; did you mean 'steps'"),
        ("rdm.process.schedule=cosin", "rdm.process.schedule: input should be 'linear'"),
        ("generator.depth=many", "generator.depth: expected a whole number, got 'many'"),
        ("generator.width=-16", "generator.width: input should be greater than 0, got -16"),
        ("data.image_size=-1", "data.image_size: input should be greater than or equal to 4, got -1"),
        ("generator.depth", "an override looks like rdm.width=512"),
        ("seed.a=1", "cannot override seed.a"),
    ],
)
def test_an_invalid_configuration_is_refused(override, sentence, tmp_path):
    path = write(tmp_path, seed=3)
    assert sentence in refused("train_encoder", path, override, folder=tmp_path)


def test_a_mistake_ends_a_real_process_with_code_2(tmp_path):
    sentence = refused("train_encoder", write(tmp_path), "rdm.widht=1", folder=tmp_path, run=process)
    assert "did you mean 'width'" in sentence


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
    assert done.stderr.count("warning: ") == 1
    assert "UserWarning" not in done.stderr
    assert "broken.png" in done.stderr


def test_the_rdm_is_not_trained_before_there_is_an_encoder(tmp_path):
    assert "run tools/train_encoder.py" in refused("train_rdm", write(tmp_path), folder=tmp_path)


def test_a_truncated_checkpoint_is_named(toy_copy, tmp_path):
    path = RunFolder(tmp_path / "run").rdm.checkpoint
    path.write_bytes(path.read_bytes()[:-100])
    sentence = refused("sample", tmp_path / "run", "--out", tmp_path / "out", folder=tmp_path)
    assert f"{path} is truncated" in sentence


def test_an_rdm_of_another_encoder_is_refused_in_training_and_in_sampling(toy_copy, tmp_path):
    train("encoder", toy_copy, "seed=5", mode=Mode.OVERWRITE)
    sentence = refused("train_pixel", toy_copy, "--overwrite", folder=tmp_path)
    assert "train the RDM again" in sentence
    shutil.rmtree(tmp_path / "run" / "rdm")
    train("rdm", toy_copy)
    sentence = refused("sample", tmp_path / "run", "--out", tmp_path / "out", folder=tmp_path)
    assert "the generator is conditioned on representations of moco_v3" in sentence


@pytest.mark.parametrize("stage", ["train_encoder", "train_rdm", "train_pixel"])
def test_a_folder_that_holds_a_run_is_not_overwritten_by_accident(toy_copy, tmp_path, stage):
    assert "go on with --resume" in refused(stage, toy_copy, folder=tmp_path)
    changed = {"train_encoder": "encoder.train.momentum", "train_rdm": "rdm.depth", "train_pixel": "generator.depth"}
    value = 0.5 if stage == "train_encoder" else 3
    sentence = refused(stage, toy_copy, f"{changed[stage]}={value}", "--resume", folder=tmp_path)
    assert "holds another experiment" in sentence
    assert changed[stage] in sentence


def test_a_folder_from_before_a_key_existed_has_its_default(toy_copy, tmp_path):
    path = tmp_path / "run" / "dit" / "config.yaml"
    values = yaml.safe_load(path.read_text())
    del values["generator"]["grad_checkpointing"]
    path.write_text(yaml.safe_dump(values))
    assert "holds another experiment (generator.grad_checkpointing: False -> True)" in refused(
        "train_pixel", toy_copy, "generator.grad_checkpointing=true", "--resume", folder=tmp_path
    )
    assert "already holds step" in refused("train_pixel", toy_copy, folder=tmp_path)


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    path = write(tmp_path)
    (tmp_path / "run" / "encoder").mkdir(parents=True)
    (tmp_path / "run" / "encoder" / "thesis.txt").write_text("mine")
    assert "not an experiment's" in refused("train_encoder", path, folder=tmp_path)


def test_an_encoder_that_changed_since_its_training_is_refused(toy_copy, tmp_path):
    assert "encoder.depth: 1 -> 2" in refused("train_rdm", toy_copy, "encoder.depth=2", "--overwrite", folder=tmp_path)


def test_a_batch_that_cannot_be_shared_is_refused(toy_copy, tmp_path):
    sentence = refused("train_rdm", toy_copy, "rdm.train.grad_accum_steps=3", "--overwrite", folder=tmp_path)
    assert "nearest that fits is 33" in sentence


def test_classes_are_refused_where_there_are_none(toy_copy, tmp_path):
    sentence = refused("sample", tmp_path / "run", "--class", 3, "--out", tmp_path / "out", folder=tmp_path)
    assert "neither the generator nor the RDM was trained on classes" in sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--num", "0"], "expected a whole number from 1 to 1000000000, got '0'"),
        (["--guidance", "-1"], "expected a number from 0 to 100, got '-1'"),
        (["--steps", "1001"], "the process has 1000 noise levels"),
        (["--generator", "dut"], "no generator 'dut'; did you mean 'dit'"),
        (["--gudance", "2"], "unrecognized arguments"),
    ],
)
def test_a_wrong_argument_of_sampling_is_refused(toy_run, tmp_path, arguments, sentence):
    assert sentence in refused("sample", toy_run / "run", "--out", tmp_path / "out", *arguments, folder=toy_run)


def test_a_missing_run_is_named(toy_run, tmp_path):
    sentence = refused("sample", toy_run / "rum", "--out", tmp_path / "out", folder=toy_run)
    assert "did you mean" in sentence


def test_swapping_the_generator_leaves_the_other_ones_settings_out(tmp_path):
    path = write(tmp_path)
    values = yaml.safe_load(path.read_text())
    values["generator"]["name"] = "something_else"
    path.write_text(yaml.safe_dump(values))
    experiment = load_experiment(path, ["generator.name=dit"])
    assert experiment.generator.width == 384
    assert experiment.generator.train.steps == 20


def test_help_lists_the_sections():
    done = tool("train_rdm", "--help")
    assert done.returncode == 0
    for section in ("data:", "encoder:", "rdm:", "generator:", "generator.train:", "condition_dropout"):
        assert section in done.stdout
