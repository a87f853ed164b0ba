"""Parts of one run belong together: what changed between two trainings is refused where they meet."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.encoding.run_folder import Mode, RunFolder
from rcg.pipeline import Pipeline
from tests.toy import KL, snapshot, train, write

AUTOENCODER = KL | {"train": KL["train"] | {"perceptual": "none", "steps": 1}}
SHORT = {
    f"{section}__train__{key}": value
    for section in ("encoder", "rdm", "generator")
    for key, value in (("steps", 2), ("batch_size", 8))
}


def pictures(folder, count, classes=("",)):
    """Write pictures of noise in folders of classes."""
    draw = np.random.default_rng(count)
    for number in range(count):
        path = folder / classes[number % len(classes)] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return {"name": "image_folder", "root": str(folder), "image_size": 16}


def further_trained(run):
    """Change the run's encoder as further training would."""
    part = checkpoint.load(run.encoder.checkpoint)
    part.tensors["trunk.conv1.weight"] += 0.1
    checkpoint.save(run.encoder.checkpoint, part)


def trained_on_others(path):
    """Let a part say that it was trained on other images."""
    part = checkpoint.load(path)
    checkpoint.save(path, replace(part, facts=part.facts.model_copy(update={"fingerprint": "0" * 16})))


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory):
    """All four stages, trained on a folder of pictures."""
    folder = tmp_path_factory.mktemp("neighbors")
    path = write(
        folder, data=pictures(folder / "images", 50), generator__autoencoder=AUTOENCODER, generator__patch=2, **SHORT
    )
    for stage in ("encoder", "autoencoder", "rdm", "generator"):
        train(stage, path)
    return path


@pytest.fixture
def own(folder_run, tmp_path):
    """A copy of that run, and its configuration, that a test may change."""
    shutil.copytree(folder_run.parent, tmp_path, dirs_exist_ok=True)
    changes = {"data": {"name": "image_folder", "root": str(tmp_path / "images"), "image_size": 16}}
    return write(tmp_path, generator__autoencoder=AUTOENCODER, generator__patch=2, **changes, **SHORT)


@pytest.mark.parametrize(
    ("normalize", "stage", "longer"),
    [
        ("per_sample", "rdm", False),
        ("per_sample", "rdm", True),
        ("per_dataset", "rdm", False),
        ("per_sample", "generator", False),
        ("per_dataset", "generator", True),
    ],
)
def test_a_training_is_not_resumed_on_another_encoder(toy_run, tmp_path, normalize, stage, longer):
    path = write(tmp_path, normalize=normalize, **SHORT)
    shutil.copytree(toy_run / "run" / "encoder", tmp_path / "run" / "encoder")
    train("rdm", path)
    if stage == "generator":
        train("generator", path)
        (tmp_path / "run" / "rdm" / "model.safetensors").unlink()  # else it would be the RDM that does not fit
    further_trained(RunFolder(tmp_path / "run"))
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"representations of moco_v3:.* not of moco_v3:"):
        train(stage, path, *([f"{stage}.train.steps=9"] if longer else []), mode=Mode.RESUME)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("stage", ["encoder", "autoencoder", "rdm", "generator"])
def test_a_training_is_not_resumed_on_other_images(own, tmp_path, stage):
    pictures(tmp_path / "images", 51)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"was trained on other images than data set 'image_folder' holds in .*images"):
        train(stage, own, mode=Mode.RESUME)
    assert snapshot(tmp_path) == before


def test_classes_that_changed_are_named(tmp_path):
    data = pictures(tmp_path / "images", 50, ("cat", "dog"))
    path = write(tmp_path, data=data, encoder__weights="none", **SHORT)
    train("rdm", path)
    pictures(tmp_path / "images", 3, ("emu",))
    with pytest.raises(UserError, match="classes were cat, dog, now cat, dog, emu"):
        train("rdm", path, mode=Mode.RESUME)


@pytest.mark.parametrize("stage", ["encoder", "autoencoder", "rdm", "generator"])
def test_images_that_moved_are_the_same_images(own, tmp_path, stage):
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    folder = train(stage, own, f"data.root={tmp_path / 'elsewhere'}", mode=Mode.RESUME)
    assert folder.part().facts.step > 0


@pytest.mark.parametrize(
    ("stage", "other", "sentence"),
    [
        ("rdm", "encoder", "encoder/model.safetensors was trained on other images"),
        ("generator", "encoder", "encoder/model.safetensors was trained on other images"),
        ("generator", "rdm", "rdm/model.safetensors was trained on other images"),
    ],
)
def test_stages_of_one_run_are_trained_on_the_same_images(own, tmp_path, stage, other, sentence):
    path = tmp_path / "run" / other / "model.safetensors"
    trained_on_others(path)
    shutil.rmtree(tmp_path / "run" / {"generator": "dit"}.get(stage, stage))
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=sentence):
        train(stage, own)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(("kind", "name"), [("rdm", "RDM"), ("encoder", "encoder")])
def test_a_pipeline_is_made_of_parts_of_the_same_images(own, tmp_path, kind, name):
    assert Pipeline.from_pretrained(tmp_path / "run")
    path = tmp_path / "run" / kind / "model.safetensors"
    trained_on_others(path)
    with pytest.raises(UserError, match=f"the {name} and the generator were trained on different images"):
        Pipeline.from_pretrained(tmp_path / "run")


def test_a_training_without_a_part_knows_its_neighbors_from_its_records(own, tmp_path):
    (tmp_path / "run" / "rdm" / "model.safetensors").unlink()  # as where the first save was interrupted
    further_trained(RunFolder(tmp_path / "run"))
    with pytest.raises(UserError, match="was trained with other neighbors"):
        train("rdm", own, mode=Mode.RESUME)


@pytest.mark.parametrize(("stage", "other"), [("rdm", "encoder"), ("generator", "encoder"), ("generator", "rdm")])
def test_a_neighbor_that_is_not_finished_is_warned_of(own, tmp_path, stage, other, capsys):
    path = tmp_path / "run" / other / "model.safetensors"
    part = checkpoint.load(path)
    checkpoint.save(path, replace(part, facts=part.facts.model_copy(update={"steps": 99})))
    capsys.readouterr()
    train(stage, own, mode=Mode.RESUME)
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert f"{other}/model.safetensors is at step 2 of 99" in warning


@pytest.mark.parametrize("stage", ["rdm", "generator"])
def test_a_projection_that_is_too_wide_is_refused_before_images_are_encoded(own, tmp_path, stage):
    shutil.rmtree(tmp_path / "run" / "cache")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="have at most 8 principal components"):
        train(stage, own, "projection.width=33", mode=Mode.OVERWRITE)
    assert snapshot(tmp_path) == before
