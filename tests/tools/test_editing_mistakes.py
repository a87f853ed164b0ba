"""What every editing tool makes of bad input: one sentence, exit code 2, and nothing written; and of odd pictures."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.core.contracts import Space
from rcg.data.images import square
from rcg.data.pictures import read_picture
from rcg.editing.directions import Direction
from rcg.editing.images import read_images
from rcg.encoding.run_folder import RunFolder
from rcg.pipeline import Pipeline
from tests.toy import complaint, snapshot, tool, train, write

MODES = {"RGBA": 4, "LA": 2, "L": 1, "P": 1, "CMYK": 4}
PHASES = ["--t-edit", "0.5", "--t-boost", "0"]
TOOLS = {
    "reconstruct": ["--images", "{pictures}", "--steps", "2", "--seeds", "1"],
    "interpolate": ["--images", "{pictures}", "--frames", "1", "--steps", "2"],
    "attributes": ["--with", "{pictures}", "--without", "{others}"],
    "edit": ["--images", "{pictures}", "--attribute", "{direction}", "--steps", "2"],
    "edit redraw": ["--images", "{pictures}", "--redraw", "0.5", "--steps", "2", "--like", "{others}/a.png"],
    "edit h": ["--images", "{pictures}", "--attribute", "{direction}", "--in", "h", *PHASES, "--steps", "2"],
    "train_shift": ["--images", "{pictures}", "--attribute", "{direction}", "--train-steps", "1", *PHASES],
    "sample": ["--like", "{pictures}", "--num", "1"],
    "inpaint": ["--image", "{pictures}/0 RGBA.png", "--box", "0", "0", "0.5", "1", "--representation", "original"],
}
"""A command line of each way to edit, without the run."""


@pytest.fixture(scope="module")
def places(toy_run, toy_autoencoder, tmp_path_factory):
    """Runs and files by name; nobody may change them.

    `pictures` has one of each mode, of different sizes; `plain` is a run with condition `none`; `bare` has no encoder;
    `elsewhere` is a direction of another space.
    """
    folder = tmp_path_factory.mktemp("places")
    found = {name: folder / name for name in ("pictures", "others", "direction", "elsewhere", "plain", "bare")}
    random = np.random.RandomState(0)
    for name in ("pictures", "others"):
        found[name].mkdir()
    for number, (mode, channels) in enumerate(MODES.items()):
        values = random.randint(0, 256, (20 + number, 26, channels), dtype=np.uint8)
        image = Image.fromarray(values[..., 0]).convert(mode) if channels == 1 else Image.fromarray(values, mode)
        image.save(found["pictures"] / f"{number} {mode}.{'tif' if mode == 'CMYK' else 'png'}")
    for name in "abcde":
        Image.fromarray(random.randint(0, 256, (16, 16, 3), dtype=np.uint8)).save(found["others"] / f"{name}.png")
    space = Pipeline.from_pretrained(toy_run / "run").representation.space
    Direction("x", torch.eye(space.shape[0])[0], space).save(found["direction"])
    Direction("x", torch.eye(8)[0], Space((8,), id="elsewhere")).save(found["elsewhere"])
    for name in ("plain", "bare"):
        shutil.copytree(toy_run / "run", found[name] / "run")
    train("generator", write(found["plain"], generator__condition="none", generator__train__steps=1))
    shutil.rmtree(found["plain"] / "run" / "dit")
    shutil.rmtree(RunFolder(found["bare"] / "run").encoder.path)
    return found | {"run": toy_run / "run", "plain": found["plain"] / "run", "bare": found["bare"] / "run"}


def call(tool_name, run, places, out, **changes):
    """Run a tool on a run; `changes` put other files in the place of some."""
    name = tool_name.split()[0]
    out = out / "panel.png" if name == "inpaint" else out
    arguments = [argument.format(**places | changes) for argument in TOOLS[tool_name]]
    return tool(name, run, *arguments, "--out", out)


def refused(tool_name, run, places, tmp_path, **changes):
    """Return the sentence with which a tool refuses; it has written nothing."""
    before = snapshot(run)
    sentence = complaint(call(tool_name, run, places, tmp_path / "out", **changes))
    assert snapshot(run) == before
    assert not (tmp_path / "out").exists()
    return sentence


def test_pictures_of_any_size_and_mode_become_squares_as_those_of_a_data_set(places):
    images = read_images([places["pictures"]], 16)
    assert [image.name.split(".")[0].split()[1] for image in images] == list(MODES)
    for image in images:
        assert image.pixels.shape == (3, 16, 16)
        assert 0 <= image.pixels.min() < image.pixels.max() <= 1
        assert torch.equal(image.pixels, square(read_picture(places["pictures"] / image.name), 16))


@pytest.mark.parametrize("name", TOOLS)
def test_pictures_of_any_size_and_mode_are_taken(name, places, tmp_path):
    done = call(name, places["run"], places, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", TOOLS)
def test_a_run_without_an_encoder_is_refused(name, places, tmp_path):
    sentence = refused(name, places["bare"], places, tmp_path)
    assert "encoder" in sentence
    assert str(places["bare"]) in sentence


# Directions are found without a generator.
@pytest.mark.parametrize("name", [name for name in TOOLS if name != "attributes"])
def test_a_generator_without_a_condition_is_refused(name, places, tmp_path):
    assert "condition" in refused(name, places["plain"], places, tmp_path)


@pytest.mark.parametrize("name", [name for name, arguments in TOOLS.items() if "{direction}" in arguments])
def test_an_attribute_of_another_space_is_refused(name, places, tmp_path):
    assert "elsewhere" in refused(name, places["run"], places, tmp_path, direction=places["elsewhere"])


@pytest.mark.parametrize("name", TOOLS)
def test_a_file_that_is_no_picture_is_refused(name, places, tmp_path):
    (tmp_path / "broken").mkdir()
    for file in ("a.png", "b.png", "0 RGBA.png"):
        (tmp_path / "broken" / file).write_text("no")
    sentence = refused(name, places["run"], places, tmp_path, pictures=tmp_path / "broken")
    assert "cannot be read" in sentence
    assert "broken" in sentence
