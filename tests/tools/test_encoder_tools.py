"""The tools that list, cache and judge encoders."""

import pytest
import torch
from PIL import Image

from rcg import cache
from tests.toy import process, tool, write

RANDOM = {"name": "timm_model", "model": "resnet10t", "weights": "none", "input_size": 32}


@pytest.fixture
def toy(tmp_path):
    return write(tmp_path, encoder=RANDOM | {"train": {}}, data__limit=80)


def test_the_list_names_width_licence_and_presence():
    listed = tool("encoders", "dinov2_vits14")
    assert listed.returncode == 0
    line = next(line for line in listed.stdout.splitlines() if "dinov2_vits14 " in line)
    assert line.split() == ["preset:", "dinov2_vits14", "384", "224", "22", "M", "apache-2.0", "to", "be", "downloaded"]
    assert "moco_v3, arch: vit_base" in tool("encoders", "moco").stdout


def test_a_word_that_no_encoder_has_is_an_error():
    listed = tool("encoders", "dinosaur")
    assert listed.returncode == 2
    assert "no encoder has 'dinosaur' in its name" in listed.stderr


def test_the_script_does_not_hide_the_package_of_its_name():
    assert "preset: mae_vitb16" in process("encoders", "mae").stdout


def test_the_cache_serves_the_training_and_says_so(toy, monkeypatch):
    filled = tool("cache", toy)
    assert filled.returncode == 0, filled.stderr
    assert "72 training images x 1 views and 8 held-out ones, 512 features" in filled.stdout
    monkeypatch.setattr(cache, "_encode", lambda *_: pytest.fail("encoded again"))
    trained = tool("train_rdm", toy, "rdm.train.steps=2")
    assert trained.returncode == 0, trained.stderr
    assert "representations of 72 train images x 1 views: from" in trained.stdout


def test_a_projection_is_fitted_once_and_names_the_space(toy):
    project = ["projection.width=8", "normalise=per_dataset"]
    assert tool("cache", toy, *project).returncode == 0
    (fitted,) = (toy.parent / "run" / "representation").iterdir()
    before = fitted.read_bytes()
    for name in ("train_rdm", "train_pixel"):
        done = tool(name, toy, *project, "rdm.train.steps=2", "generator.train.steps=2")
        assert done.returncode == 0, done.stderr
    assert fitted.read_bytes() == before
    other = tool("train_pixel", toy, "projection.width=6", "normalise=per_dataset", "--overwrite")
    assert other.returncode == 2
    assert "pca8/per_dataset" in other.stderr
    assert "pca6/per_dataset" in other.stderr


@pytest.mark.parametrize("labelled", [True, False])
def test_the_report_judges_an_encoder_with_and_without_labels(tmp_path, labelled):
    if labelled:
        toy = write(tmp_path, encoder=RANDOM | {"train": {}}, data__limit=80)
    else:
        for index in range(40):
            Image.effect_noise((16, 16), 10 + index).convert("RGB").save(tmp_path / f"{index}.png")
        data = {"name": "image_folder", "root": str(tmp_path), "image_size": 16, "validation": 0.3}
        toy = write(tmp_path, encoder=RANDOM | {"train": {}}, data=data)
    told = tool("inspect_encoder", toy, "--out", tmp_path / "report")
    assert told.returncode == 0, told.stderr
    for word in ("alignment", "uniformity", "effective rank", "rep-FD floor", "images per second", "licence"):
        assert word in told.stdout
    for word in ("10-NN accuracy (cosine)", "linear probe", "raw pixels", "random weights"):
        assert (word in told.stdout) == labelled
    with Image.open(tmp_path / "report" / "report.png") as picture:
        assert picture.width > 1000


def test_a_representation_that_separates_the_classes_is_judged_so():
    from rcg.metrics.representation import linear_accuracy, nearest, spectrum

    torch.manual_seed(0)
    labels = torch.arange(200) % 4
    clear = torch.eye(4)[labels] + 0.05 * torch.randn(200, 4)
    assert linear_accuracy(clear[:100], labels[:100], clear[100:], labels[100:]) == 1
    noise = torch.randn(200, 4)
    assert linear_accuracy(noise[:100], labels[:100], noise[100:], labels[100:]) < 0.5
    assert nearest(clear[:3], clear, 1).flatten().tolist() == [0, 1, 2]
    shares = spectrum(torch.diag(torch.tensor([3.0, 1.0])).repeat(2, 1) * torch.tensor([1.0, 1, -1, -1])[:, None])
    torch.testing.assert_close(shares, torch.tensor([0.75, 0.25], dtype=torch.float64))
