"""Editing through the tools: reconstruct, interpolate, find attributes, edit."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.editing import sparse_autoencoder
from rcg.editing.directions import Direction
from rcg.pipeline import Pipeline
from tests.toy import MAGE, complaint, tool, train, write

ONE_IN_H = ["--images", "{picture}", "--attribute", "{one}", "--in", "h"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 24 digits, half of them ones, with a table of what they are."""
    folder = tmp_path_factory.mktemp("pictures")
    digits = load_digits()
    ones, others = (np.flatnonzero((digits.target == 1) == is_one)[:12] for is_one in (True, False))
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "one", "ink"])
        for index in sorted([*ones, *others]):
            values = digits.images[index] / 16
            Image.fromarray((values * 255).astype(np.uint8)).save(folder / f"{index:03d}.png")
            table.writerow([f"{index:03d}.png", int(index in ones), values.mean()])
    return folder


@pytest.fixture(scope="module")
def directions(toy_run, pictures, tmp_path_factory):
    """The directions of the table's attributes."""
    out = tmp_path_factory.mktemp("directions")
    table = ["--images", pictures, "--table", pictures / "table.csv"]
    done = tool("attributes", toy_run / "run", *table, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "(cross-validated), 12 of 24 examples with it" in done.stdout
    return out


def test_a_reconstruction_compares_inverted_and_random_noise(toy_run, pictures, tmp_path):
    options = ["--num", 3, "--steps", 2, 4, "--seeds", 2, "--out", tmp_path]
    done = tool("reconstruct", toy_run / "run", "--images", pictures, *options)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "reconstruction.json").read_text())
    kinds = ["inverted", "random", "mean of 2 random"]
    assert [(row["noise"], row["steps"]) for row in report["rows"]] == [(kind, n) for n in (2, 4) for kind in kinds]
    assert "| inverted | 4 |" in (tmp_path / "reconstruction.md").read_text()
    assert (tmp_path / "reconstruction.png").is_file()


def test_an_interpolation_begins_and_ends_at_the_reconstructions(toy_run, pictures, tmp_path):
    files = sorted(pictures.glob("*.png"))[:3]
    options = ["--frames", 4, "--steps", 3, "--out", tmp_path]
    done = tool("interpolate", toy_run / "run", "--images", *files, *options)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "interpolation.json").read_text())
    assert len(facts["distances"]) == 8
    with Image.open(tmp_path / "interpolation.webp") as animation:
        assert animation.n_frames == 16  # nine frames, and back


def test_attributes_are_found_in_two_folders_and_in_variance(toy_run, pictures, tmp_path):
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    for row in csv.DictReader((pictures / "table.csv").open()):
        shutil.copy(pictures / row["name"], tmp_path / ("with" if row["one"] == "1" else "without"))
    examples = ["--with", tmp_path / "with", "--without", tmp_path / "without", "--name", "one"]
    assert tool("attributes", toy_run / "run", *examples, "--out", tmp_path / "out").returncode == 0
    done = tool("attributes", toy_run / "run", "--images", pictures, "--components", 2, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"one.safetensors", "component 1.safetensors", "component 2.safetensors"}


def test_classes_of_folders_and_of_the_run_give_a_direction_each(toy_run, pictures, tmp_path):
    for row in csv.DictReader((pictures / "table.csv").open()):
        folder = tmp_path / "classes" / ("ones" if row["one"] == "1" else "others")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / row["name"], folder)
    done = tool("attributes", toy_run / "run", "--images", tmp_path / "classes", "--out", tmp_path / "folders")
    assert done.returncode == 0, done.stderr
    ones, others = (
        Direction.load(tmp_path / "folders" / f"{name}.safetensors", space(toy_run)) for name in ("ones", "others")
    )
    assert torch.allclose(ones.vector, -others.vector, atol=1e-3)
    done = tool("attributes", toy_run / "run", "--attributes", 1, 7, "--out", tmp_path / "own")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["1.safetensors", "7.safetensors"]


def test_the_table_of_a_data_set_names_images_by_their_keys(toy_run, tmp_path):
    table = tmp_path / "table.json"
    ink = load_digits().images.mean((1, 2))
    table.write_text(json.dumps({index: {"ink": value} for index, value in enumerate(ink.tolist())}))
    done = tool("attributes", toy_run / "run", "--table", table, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "ink.safetensors").is_file()


def test_features_are_found_without_labels(toy_run, tmp_path, monkeypatch):
    monkeypatch.setattr(sparse_autoencoder, "STEPS", 20)
    features = ["--features", 8, "--active", 2, "--out", tmp_path / "out"]
    done = tool("attributes", toy_run / "run", *features)
    assert done.returncode == 0, done.stderr
    assert re.search(r"features.png: explained variance \S+, \S+ features per image, \d dead features", done.stdout)
    assert (tmp_path / "out" / "feature 1.safetensors").is_file()
    with Image.open(tmp_path / "out" / "features.png") as picture:
        assert picture.width > 10 * 64


def space(toy_run):
    return Pipeline.from_pretrained(toy_run / "run").representation.space


def test_an_edit_moves_along_its_direction(toy_run, pictures, directions, tmp_path):
    files = sorted(pictures.glob("*.png"))[:2]
    ink = directions / "ink.safetensors"
    attribute = ["--attribute", directions / "one.safetensors", "--keep", ink]
    options = ["--strength", -1, 0, 1, "--steps", 3, "--out", tmp_path]
    done = tool("edit", toy_run / "run", "--images", *files, *attribute, *options)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "one.json").read_text())
    assert [row["strength"] for row in facts["rows"]] == [-1, 0, 1]
    assert set(facts["rows"][0]["others"]) == {"ink"}
    assert facts["rows"][0]["precision"] > 0
    assert -1 <= facts["monotonicity"] <= 1
    assert (tmp_path / "one.png").is_file()


def test_an_edit_from_random_noise_is_another_one_and_watches_other_properties(toy_run, pictures, directions, tmp_path):
    picture = sorted(pictures.glob("*.png"))[0]
    attribute = ["--attribute", directions / "one.safetensors", "--watch", directions / "ink.safetensors"]
    distances = {}
    for noise in ("own", "random"):
        options = ["--strength", 0, "--steps", 8, "--noise", noise, "--out", tmp_path / noise]
        done = tool("edit", toy_run / "run", "--images", picture, *attribute, *options)
        assert done.returncode == 0, done.stderr
        facts = json.loads((tmp_path / noise / "one.json").read_text())
        assert facts["noise"] == noise
        assert set(facts["rows"][0]["others"]) == {"ink"}
        distances[noise] = facts["rows"][0]["distance"]
    assert distances["own"] < distances["random"]


def test_images_are_redrawn_as_they_are_and_like_another(toy_run, pictures, tmp_path):
    files, rows = sorted(pictures.glob("*.png")), {}
    for name, like in (("own", []), ("other", ["--like", files[9]])):
        options = ["--redraw", 0, 0.5, 1, "--steps", 4, *like, "--out", tmp_path / name]
        done = tool("edit", toy_run / "run", "--images", *files[:2], *options)
        assert done.returncode == 0, done.stderr
        facts = json.loads((tmp_path / name / "redraw.json").read_text())
        assert facts["like"] == (files[9].name if like else None)
        rows[name] = facts["rows"]
        with Image.open(tmp_path / name / "redraw.png") as panel:
            assert panel.width > 4 * 64
    assert [row["strength"] for row in rows["own"]] == [0, 0.5, 1]
    assert rows["own"][0]["distance"] < 1e-5 < rows["own"][1]["distance"]
    assert rows["own"][0]["cosine"] > 0.9999 > rows["other"][0]["cosine"]


def test_an_edit_in_h_space_tells_its_phases_and_how_alike_its_shifts_are(toy_run, pictures, directions, tmp_path):
    files = sorted(pictures.glob("*.png"))[:2]
    options = ["--attribute", directions / "one.safetensors", "--strength", -90, 0, 90, "--steps", 3, "--out", tmp_path]
    phases = ["--in", "h", "--block", 2, "--t-edit", 0.1, "--t-boost", 0]
    done = tool("edit", toy_run / "run", "--images", *files, *options, *phases)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "one-h.json").read_text())
    assert (facts["space"], facts["block"], facts["phases"]["boost"]) == ("h", 2, 0)
    assert "linearity" in facts
    assert set(facts["homogeneity"]) == {"strength", "score", "score_of_mean", "distance"}


def test_a_shift_is_trained_and_edits(toy_run, pictures, directions, tmp_path):
    run, files = toy_run / "run", sorted(pictures.glob("*.png"))[:3]
    options = ["--t-edit", 0.9, "--t-boost", 0.5, "--train-steps", 2, "--batch-size", 2, "--width", 8]
    examples = ["--encoder", "{name: moco_v3, arch: resnet18, width: 4, weights: none}", "--with", files[0]]
    place = ["--images", *files, "--attribute", directions / "one.safetensors", "--out", tmp_path / "shifts"]
    done = tool("train_shift", run, *place, *options)
    assert done.returncode == 0, done.stderr
    assert "with the direction, 3 images. Next: tools/edit.py" in done.stdout
    shift = tmp_path / "shifts" / "one.shift.safetensors"
    assert list(shift.parent.iterdir()) == [shift]
    place = ["--images", *files, "--attribute", shift, "--steps", 2, "--out", tmp_path / "edits"]
    done = tool("edit", run, *place)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "edits" / "one-h.json").read_text())
    assert facts["phases"] == {"edit": 0.9, "boost": 0.5}
    for wrong, words in (
        (["--in", "z"], "is a trained shift of h: leave --in z out"),
        (["--block", 1], "moves what it was trained to move: leave --block and --keep out"),
    ):
        assert words in complaint(tool("edit", run, *place, *wrong))
    refused = tool("train_shift", run, *place[:2], "--attribute", directions / "one.safetensors", *examples)
    assert "another judge needs all of --encoder, --with and --without" in complaint(refused)
    refused = tool("train_shift", run, *place[:2], "--attribute", directions / "one.safetensors", "--t-edit", 1)
    assert "so that nothing is edited or learned" in complaint(refused)


def test_tokens_have_no_noise_and_are_edited_from_a_seed(toy_run, toy_autoencoder, pictures, directions, tmp_path):
    for stage in ("encoder", "rdm"):
        shutil.copytree(toy_run / "run" / stage, tmp_path / "run" / stage)
    train("generator", write(tmp_path, generator=MAGE))
    picture = sorted(pictures.glob("*.png"))[0]
    attribute = ["--attribute", directions / "one.safetensors", "--strength", 0, 1, "--steps", 2]
    done = tool("edit", tmp_path / "run", "--images", picture, *attribute, "--out", tmp_path / "edits")
    assert done.returncode == 0, done.stderr
    done = tool(
        "edit", tmp_path / "run", "--images", picture, "--redraw", 0.5, "--steps", 2, "--out", tmp_path / "edits"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "edits" / "redraw.png").is_file()
    refused = tool("edit", tmp_path / "run", "--images", picture, *attribute, "--in", "h", "--out", tmp_path / "no")
    assert "MAGE has no h-space: use dit, adm or ldm" in complaint(refused)
    assert not (tmp_path / "no").exists()
    with pytest.raises(UserError, match="mage generates tokens, which have no x_T to recover"):
        Pipeline.from_pretrained(tmp_path / "run").encode(torch.rand(1, 3, 16, 16), steps=2)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("interpolate", ["--images", "{picture}"], "leads from one image to another, and there is 1"),
        ("reconstruct", ["--images", "{missing}"], "cannot be read"),
        ("edit", ["--images", "{picture}", "--attribute", "{missing}"], "there is no file"),
        ("edit", ["--images", "{picture}", "--attribute", "{one}", "--strength", "nan"], "expected a number from -100"),
        ("edit", ["--images", "{picture}", "--attribute", "{other}"], "is a direction of elsewhere"),
        ("edit", ["--images", "{picture}", "--attribute", "{one}", "--block", "1"], "--block is about edits in h"),
        ("edit", [*ONE_IN_H, "--block", "9"], "no block 9 in this dit: choose one from 1 to 2"),
        ("edit", [*ONE_IN_H, "--t-edit", "0.2", "--t-boost", "0.4"], "t_boost is 0.4, but editing ends at t_edit 0.2"),
        ("edit", [*ONE_IN_H, "--noise", "random"], "starts from the image's own noise"),
        ("edit", [*ONE_IN_H, "--t-edit", "nan"], "expected a number from 0 to 1"),
        ("edit", [*ONE_IN_H, "--guidance", "2"], "decoded without guidance"),
        ("edit", ["--images", "{picture}"], "one of the arguments --attribute --redraw is required"),
        ("edit", ["--images", "{picture}", "--redraw", "nan"], "expected a number from 0 to 1"),
        (
            "edit",
            ["--images", "{picture}", "--redraw", "0.5", "--strength", "1"],
            "--strength is about edits by an --attr",
        ),
        ("edit", ["--images", "{picture}", "--redraw", "0.5", "--t-edit", "0"], "--t-edit is about edits by an --attr"),
        ("edit", ["--images", "{picture}", "--redraw", "0.5", "--like", "{missing}"], "cannot be read"),
        ("edit", ["--images", "{picture}", "--attribute", "{one}", "--like", "{picture}"], "--like is about redrawing"),
        ("attributes", ["--images", "{pictures}"], "have no classes, which are two or more folders"),
        ("attributes", ["--images", "{single}"], "have no classes, which are two or more folders"),
        ("attributes", ["--attributes", "11"], "has no class '11'"),
        ("attributes", ["--with", "{pictures}"], "give both"),
        ("attributes", ["--components", "2", "--features", "8"], "give one of them, or none"),
        ("attributes", ["--components", "2", "--attributes", "1"], "leave it out"),
        ("attributes", ["--features", "3"], "at most all 3 features"),
        (
            "attributes",
            ["--images", "{pictures}", "--table", "{table}", "--attributes", "two"],
            "has no attribute 'two'",
        ),
        (
            "attributes",
            ["--images", "{pictures}", "--table", "{equal}"],
            "the attribute one has 2 example(s) of 1 value",
        ),
        ("attributes", ["--images", "{pictures}", "--table", "{picture}"], "is no table of attributes"),
        ("attributes", ["--images", "{pictures}", "--table", "{short}"], "is no table of attributes"),
        ("attributes", ["--images", "{pictures}", "--table", "{gap}"], "has no attribute 'one' of"),
        ("attributes", ["--images", "{pictures}", "--table", "{bare}"], "has no attribute of them"),
        ("attributes", ["--images", "{pictures}", "--table", "{twice}"], "has two rows for"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(name, arguments, words, toy_run, pictures, directions, tmp_path):
    files = sorted(pictures.glob("*.png"))
    places = {
        "picture": files[0],
        "pictures": pictures,
        "missing": tmp_path / "missing.png",
        "table": pictures / "table.csv",
        "one": directions / "one.safetensors",
        "other": tmp_path / "other.safetensors",
        "equal": tmp_path / "equal.csv",
        "short": tmp_path / "short.csv",
        "gap": tmp_path / "gap.json",
        "bare": tmp_path / "bare.csv",
        "twice": tmp_path / "twice.csv",
        "single": tmp_path / "single",
    }
    first, second = files[0].name, files[1].name
    shutil.copytree(pictures, places["single"] / "cats")
    places["short"].write_text(f"name,one,ink\n{first},1\n")
    places["gap"].write_text(json.dumps({first: {"one": 1}, second: {"ink": 1}}))
    places["bare"].write_text(f"name\n{first}\n")
    places["twice"].write_text(f"name,one\n{first},1\n{first},0\n")
    Direction("x", torch.eye(8)[0], Space((8,), id="elsewhere")).save(places["other"])
    places["equal"].write_text(f"name,one\n{first},1\n{second},1\n")
    filled = [argument.format(**places) for argument in arguments]
    sentence = complaint(tool(name, toy_run / "run", *filled, "--out", tmp_path / "out"))
    assert words in sentence
    assert not (tmp_path / "out").exists()


def test_a_generator_without_representations_has_no_codes(toy_run, pictures, tmp_path):
    for stage in ("encoder", "rdm"):
        shutil.copytree(toy_run / "run" / stage, tmp_path / "run" / stage)
    train("generator", write(tmp_path, generator__condition="none"))
    picture = sorted(pictures.glob("*.png"))[0]
    again = ["--images", picture, "--redraw", 0.5, "--steps", 2, "--out", tmp_path / "edits"]
    assert tool("edit", tmp_path / "run", *again).returncode == 0
    sentence = complaint(tool("edit", tmp_path / "run", *again, "--like", picture))
    assert "conditioned on none, not on representations: leave --like out" in sentence
    done = tool("reconstruct", tmp_path / "run", "--images", pictures, "--steps", 2, "--out", tmp_path / "out")
    assert "train one with generator.condition=representation" in complaint(done)


def test_samples_like_examples_are_generated(toy_run, pictures, tmp_path):
    for name, value in (("like", "1"), ("unlike", "0")):
        (tmp_path / name).mkdir()
        for row in csv.DictReader((pictures / "table.csv").open()):
            if row["one"] == value:
                shutil.copy(pictures / row["name"], tmp_path / name)
    for unlike in ([], ["--unlike", tmp_path / "unlike"]):
        out = tmp_path / f"out{len(unlike)}"
        options = ["--num", 3, "--rdm-steps", 3, "--out", out]
        done = tool("sample", toy_run / "run", "--like", tmp_path / "like", *unlike, *options)
        assert done.returncode == 0, done.stderr
        assert "accepted 3 of" in done.stdout
        assert (out / "gallery.png").is_file()


def test_what_examples_lack_needs_examples(toy_run, pictures, tmp_path):
    sentence = complaint(tool("sample", toy_run / "run", "--unlike", pictures, "--out", tmp_path / "out"))
    assert "--unlike says what the examples of --like lack" in sentence
