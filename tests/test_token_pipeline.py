"""A generator of tokens through the tools: trained, sampled, evaluated, and completing images."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.core import checkpoint
from rcg.encoding.run_folder import RunFolder
from rcg.pipeline import Pipeline, SamplingOptions
from tests.toy import MAGE, complaint, images, tool, train, write


@pytest.fixture(scope="module")
def run(toy_run, toy_autoencoder, tmp_path_factory):
    """The toy run's encoder with a MAGE of each condition: representations, classes, and none."""
    folder = tmp_path_factory.mktemp("tokens")
    shutil.copytree(toy_run / "run" / "encoder", folder / "run" / "encoder")
    path = write(folder, generator=MAGE, data__limit=80, rdm__train__steps=2)
    train("rdm", path)
    for condition in ("representation", "class", "none"):
        train("generator", path, f"generator.condition={condition}")
    return folder / "run"


@pytest.mark.parametrize("generator", ["mage", "mage-class", "mage-none"])
def test_the_same_seed_gives_the_same_images_whatever_the_batch_size(run, tmp_path, generator):
    for size in (5, 2):
        arguments = [run, "--generator", generator, "--num", 5, "--seed", 4, "--batch-size", size]
        guidance = [] if generator == "mage-none" else ["--guidance", 1.5]
        done = tool("sample", *arguments, *guidance, "--save-images", "--out", tmp_path / str(size))
        assert done.returncode == 0, done.stderr
    one, other = images(tmp_path / "5"), images(tmp_path / "2")
    assert len(one) == 5
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert not np.array_equal(one[0], one[1])


def test_evaluations_show_samples_beside_validation_images(run):
    pictures = sorted((run / "mage" / "samples").glob("*.png"))
    assert len(pictures) == 1
    shown = np.asarray(Image.open(pictures[0]))
    cell = shown[2:66, 68:132]  # the second one: a sample from the first validation image's representation
    assert {int(v) for v in np.unique(cell)} <= {0, 128, 255}  # the toy tokenizer's levels
    log = [json.loads(line) for line in (run / "mage" / "log.jsonl").read_text().splitlines()]
    assert 0 < log[-1]["validation_cross_entropy"] < 10


def test_guidance_works_with_given_representations_in_any_number(run):
    pipeline = Pipeline.load(run, "mage")
    z = torch.randn(3, pipeline.generator.cond.shape[0])
    for count in (1, 3):
        samples = pipeline.sample(range(count), SamplingOptions(guidance=3.0), z=z[:count])
        assert samples.images.shape == (count, 3, 16, 16)
    assert torch.equal(samples.z, z)


def test_the_ramp_survives_another_scale(run, monkeypatch):
    asked = []
    pipeline = Pipeline.load(run, "mage")
    sample = pipeline.generator.sample
    monkeypatch.setattr(pipeline.generator, "sample", lambda *a, **k: asked.append(k["guidance"]) or sample(*a, **k))
    pipeline.sample([0], SamplingOptions(guidance=3.0))
    assert (asked[0].scale, asked[0].ramp) == (3.0, "linear")


@pytest.fixture
def picture(tmp_path):
    values = np.random.RandomState(0).randint(0, 256, (20, 26, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize(
    "where",
    [
        [],
        ["--box", 0.25, 0.25, 0.75, 0.75],
        ["--outside", 0.25, 0.25, 0.75, 0.75, "--condition", "generated"],
        ["--uncrop", 0.5],
        ["--mask"],
    ],
)
def test_the_panel_shows_original_masked_and_results(run, picture, tmp_path, where):
    if where == ["--mask"]:
        Image.new("L", (16, 16), 255).save(tmp_path / "white.png")
        where = ["--mask", tmp_path / "white.png"]
    out = tmp_path / "panel.png"
    done = tool("inpaint", run, "--generator", "mage", "--image", picture, picture, "--num", 3, "--out", out, *where)
    assert done.returncode == 0, done.stderr
    panel = Image.open(out)
    assert panel.width >= 5 * 64
    assert 2 * 64 < panel.height < 3 * 64 + 64


def test_without_a_configuration_the_encoder_beside_the_generator_is_used(run, picture, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "mage" / "config.yaml").unlink()
    arguments = ["--generator", "mage", "--image", picture, "--outside", 0.25, 0.25, 0.75, 0.75]
    for folder in (run, tmp_path / "run"):
        done = tool("inpaint", folder, *arguments, "--out", folder / "panel.png")
        assert done.returncode == 0, done.stderr
    one, other = (np.asarray(Image.open(folder / "panel.png"))[20:] for folder in (run, tmp_path / "run"))
    assert np.array_equal(one[:, : other.shape[1]], other[:, : one.shape[1]])


@pytest.mark.parametrize("described", [True, False])
def test_an_encoder_that_changed_since_is_refused(run, picture, tmp_path, described):
    shutil.copytree(run, tmp_path / "run")
    if not described:
        (tmp_path / "run" / "mage" / "config.yaml").unlink()
    stage = RunFolder(tmp_path / "run").encoder
    part = stage.part()
    moved = {key: value + 1 if value.is_floating_point() else value for key, value in part.tensors.items()}
    checkpoint.save(stage.checkpoint, replace(part, tensors=moved))
    sentence = complaint(tool("inpaint", tmp_path / "run", "--generator", "mage", "--image", picture))
    assert ("train the generator again" if described else "is not the one that mage was trained with") in sentence


@pytest.mark.parametrize("generator", ["mage-class", "mage-none"])
def test_other_conditions_complete_images_too(run, picture, tmp_path, generator):
    arguments = [run, "--generator", generator, "--image", picture, "--num", 1, "--box", 0, 0, 0.5, 1]
    done = tool("inpaint", *arguments, "--out", tmp_path / "panel.png")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--box", 0.5, 0, 0.5, 1], "rising shares of the side"),
        (["--uncrop", 2], "between 0 and 1, not to 2"),
        (["--generator", "maga"], "no generator 'maga'; did you mean 'mage'"),
        (["--class", 3], "neither the generator nor the RDM was trained on classes"),
    ],
)
def test_mistakes_are_named(run, picture, tmp_path, arguments, sentence):
    done = tool("inpaint", run, "--generator", "mage", "--image", picture, *arguments, "--out", tmp_path / "panel.png")
    assert sentence in complaint(done)
    assert not (tmp_path / "panel.png").exists()


def test_a_file_that_is_no_picture_is_named(run, tmp_path):
    (tmp_path / "text.png").write_text("no")
    sentence = complaint(tool("inpaint", run, "--generator", "mage", "--image", tmp_path / "text.png"))
    assert f"{tmp_path / 'text.png'} is not a picture that can be read" in sentence
