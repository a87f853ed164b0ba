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
from tests.toy import MAGE, complaint, images, tool, train, write, write_bomb


@pytest.fixture(scope="module")
def run(toy_run, toy_autoencoder, tmp_path_factory):
    """The toy run's encoder and RDM with a MAGE of each condition: representations, classes, and none."""
    folder = tmp_path_factory.mktemp("tokens")
    for stage in ("encoder", "rdm"):
        shutil.copytree(toy_run / "run" / stage, folder / "run" / stage)
    path = write(folder, generator=MAGE)
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
    cell = shown[28:92, 76:140]  # the second one: a sample from the first validation image's representation
    assert {int(v) for v in np.unique(cell)} <= {0, 128, 255}  # the toy tokenizer's levels
    log = [json.loads(line) for line in (run / "mage" / "log.jsonl").read_text().splitlines()]
    assert 0 < log[-1]["validation_cross_entropy"] < 10


def test_guidance_works_with_given_representations_in_any_number(run):
    pipeline = Pipeline.from_pretrained(run, "mage")
    z = torch.randn(3, pipeline.generator.cond.shape[0])
    for count in (1, 3):
        samples = pipeline.generate(range(count), SamplingOptions(guidance=3.0), z=z[:count])
        assert samples.images.shape == (count, 3, 16, 16)
    assert torch.equal(samples.z, z)


def test_the_ramp_survives_another_scale(run, monkeypatch):
    asked = []
    pipeline = Pipeline.from_pretrained(run, "mage")
    sample = pipeline.generator.sample
    monkeypatch.setattr(pipeline.generator, "sample", lambda *a, **k: asked.append(k["guidance"]) or sample(*a, **k))
    pipeline.generate([0], SamplingOptions(guidance=3.0))
    assert (asked[0].scale, asked[0].ramp) == (3.0, "linear")


@pytest.fixture
def picture(tmp_path):
    values = np.random.RandomState(0).randint(0, 256, (20, 26, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize(
    "where",
    [
        ["--representation", "original"],
        ["--box", 0.25, 0.25, 0.75, 0.75],
        ["--outside", 0.25, 0.25, 0.75, 0.75, "--representation", "generated"],
        ["--uncrop", 0.5],
        ["--mask"],
    ],
)
def test_the_panel_shows_original_masked_and_results(run, picture, tmp_path, where):
    if where == ["--mask"]:
        Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / "white.png")
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


@pytest.mark.parametrize(("edge", "cut"), [(0.25, False), (0.3, True)])
def test_a_sentence_says_that_cells_are_generated_whole(run, picture, tmp_path, edge, cut):
    where = ["--box", edge, edge, 1, 1, "--out", tmp_path / "panel.png"]
    done = tool("inpaint", run, "--generator", "mage-none", "--image", picture, "--num", 1, *where)
    assert ("the hole cuts cells of mage-none, which are generated whole" in done.stdout) == cut


@pytest.mark.parametrize("described", [True, False])
def test_an_encoder_that_changed_since_is_refused(run, picture, tmp_path, described):
    shutil.copytree(run, tmp_path / "run")
    if not described:
        (tmp_path / "run" / "mage" / "config.yaml").unlink()
    stage = RunFolder(tmp_path / "run").encoder
    part = stage.part()
    moved = {key: value + 1 if value.is_floating_point() else value for key, value in part.tensors.items()}
    checkpoint.save(stage.checkpoint, replace(part, tensors=moved))
    arguments = [tmp_path / "run", "--generator", "mage", "--image", picture, "--representation", "original"]
    sentence = complaint(tool("inpaint", *arguments))
    assert "was trained with those of moco_v3" in sentence
    assert "train the generator again" in sentence


@pytest.mark.parametrize("generator", ["mage-class", "mage-none"])
def test_other_conditions_complete_images_too(run, picture, tmp_path, generator):
    arguments = [run, "--generator", generator, "--image", picture, "--num", 1, "--box", 0, 0, 0.5, 1]
    done = tool("inpaint", *arguments, "--out", tmp_path / "panel.png")
    assert done.returncode == 0, done.stderr


class Spy:
    """What an inpainting was conditioned on, and the panel that it drew, `(B, 2 + num, 3, 16, 16)`."""

    def __init__(self, monkeypatch):
        self.z, fill = [], Pipeline.inpaint
        monkeypatch.setattr(Pipeline, "inpaint", lambda *a, z=None, **k: self.z.append(z) or fill(*a, z=z, **k))
        monkeypatch.setattr("rcg.evaluation.inpainting_panel.save_gallery", self.draw)

    def draw(self, images, captions, title, path, columns):
        self.panel = images.unflatten(0, (-1, columns))


def checkered(width=52, height=40):
    """A mask that hides every second square of 8 pixels."""
    y, x = np.mgrid[:height, :width] // 8
    return Image.fromarray(((x + y) % 2 * 255).astype(np.uint8))


def pair(tmp_path, hidden):
    """Two pictures that differ where `hidden` `(40, 52)` is true, and nowhere else."""
    values = np.random.RandomState(0).randint(0, 256, (2, 40, 52, 3), dtype=np.uint8)
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    Image.fromarray(values[0]).save(paths[0])
    Image.fromarray(np.where(hidden[..., None], values[1], values[0])).save(paths[1])
    return paths


def inside(left, top, right, bottom):
    """The pixels of the middle square of 40 x 52 inside of a box."""
    hidden = np.zeros((40, 52), dtype=bool)
    hidden[round(40 * top) : round(40 * bottom), 6 + round(40 * left) : 6 + round(40 * right)] = True
    return hidden


@pytest.mark.parametrize("representation", [None, "visible", "generated"])
@pytest.mark.parametrize("where", ["box", "outside", "mask", "small mask"])
def test_what_is_hidden_changes_nothing(run, tmp_path, monkeypatch, where, representation):
    spy, edges = Spy(monkeypatch), (0.25, 0.25, 0.75, 0.5)
    if "mask" in where:
        mask = (
            checkered()
            if where == "mask"
            else Image.fromarray(np.repeat(np.eye(4) * 255, 4, 0).repeat(4, 1).astype("u1"))
        )
        mask.save(tmp_path / "mask.png")
        hidden, arguments = np.asarray(checkered()) > 0, ["--mask", tmp_path / "mask.png"]
        if where == "small mask":
            hidden = np.zeros((40, 52), dtype=bool)
            hidden[:, 6:46] = np.eye(4, dtype=bool).repeat(10, 0).repeat(10, 1)
    else:
        hidden, arguments = inside(*edges), [f"--{where}", *edges]
        hidden = hidden if where == "box" else ~hidden & inside(0, 0, 1, 1)
    arguments += [] if representation is None else ["--representation", representation]
    done = tool("inpaint", run, "--generator", "mage", "--image", *pair(tmp_path, hidden), *arguments, "--num", 2)
    assert done.returncode == 0, done.stderr
    one, two = spy.panel
    assert not torch.equal(one[0], two[0])  # the originals
    assert torch.equal(one[1:], two[1:])  # masked, and the results
    if representation == "generated":
        assert spy.z == [None, None]
    else:
        assert torch.equal(*spy.z)
    assert "one.png is 52 x 40: its middle square is resized to 16 x 16" in done.stdout


def test_the_representation_of_the_original_is_there_by_name(run, tmp_path, monkeypatch):
    spy, edges = Spy(monkeypatch), (0.25, 0.25, 0.75, 0.75)
    paths = pair(tmp_path, inside(*edges))
    arguments = [run, "--generator", "mage", "--image", *paths, "--box", *edges, "--representation", "original"]
    assert tool("inpaint", *arguments).returncode == 0
    assert not torch.equal(*spy.z)


BOX = ["--box", 0.25, 0.25, 0.75, 0.75]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--box", 0.5, 0, 0.5, 1], "rising shares of the side"),
        (["--box", "nan", "nan", "nan", "nan"], "nan"),
        (["--outside", "inf", 0, 1, 1], "inf"),
        (["--uncrop", 2], "2"),
        (["--uncrop", 1], "between 0 and 1, not to 1"),
        (["--uncrop", "nan"], "nan"),
        ([], "nothing of the image stays visible to take a representation of: use --representation original"),
        (["--box", 0, 0, 1, 1], "nothing of the image stays visible"),
        (["--mask", "black.png"], "black.png is black on the middle square of"),
        (["--mask", "odd.png"], "odd.png is 25 x 25, but"),
        (["--mask", "bomb.png"], "picture bomb.png cannot be read: it claims more pixels"),
        ([*BOX, "--image", "bomb.png"], "picture bomb.png cannot be read: it claims more pixels"),
        ([*BOX, "--image", "strip.png"], "strip.png is 1000 x 1, of which the middle square shows next to nothing"),
        ([*BOX, "--generator", "maga"], "no generator 'maga'; did you mean 'mage'"),
        ([*BOX, "--resamplings", 3], "mage generates tokens, which fit known ones without resampling"),
        ([*BOX, "--jump-length", 3], "leave --resamplings and --jump-length out"),
        ([*BOX, "--class", 3], "neither the generator nor the RDM was trained on classes"),
        ([*BOX, "--generator", "mage-class", "--representation", "visible"], "mage-class is not conditioned on repres"),
        ([*BOX, "--generator", "mage-none", "--guidance", 2], "mage-none has no condition to guide toward"),
    ],
)
def test_mistakes_are_named(run, picture, tmp_path, arguments, sentence, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (26, 20)).save("black.png")
    Image.new("L", (25, 25), 255).save("odd.png")
    Image.new("L", (1000, 1), 255).save("strip.png")
    write_bomb("bomb.png")
    arguments = ["--generator", "mage", "--image", picture, *arguments]
    sentence_found = complaint(tool("inpaint", run, *arguments, "--out", tmp_path / "panel.png"))
    assert sentence in sentence_found
    assert not (tmp_path / "panel.png").exists()


@pytest.mark.parametrize("out", ["picture.png/x.png", "folder"])
def test_a_panel_that_cannot_be_written_is_refused_before_the_work(run, picture, tmp_path, out):
    (tmp_path / "picture.png").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    arguments = [run, "--generator", "mage", "--image", picture, *BOX, "--out", tmp_path / out]
    assert "results cannot go to" in complaint(tool("inpaint", *arguments))


def test_a_file_that_is_no_picture_is_named(run, tmp_path):
    (tmp_path / "text.png").write_text("no")
    sentence = complaint(tool("inpaint", run, "--generator", "mage", "--image", tmp_path / "text.png", *BOX))
    assert f"picture {tmp_path / 'text.png'} cannot be read" in sentence
