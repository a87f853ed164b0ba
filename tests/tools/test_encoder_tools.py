"""The tools that list, cache and inspect encoders."""

import fcntl
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from rcg.core import checkpoint
from rcg.encoding import cache
from tests.toy import ROOT, process, tool, train, write

RANDOM = {"name": "timm_model", "model": "resnet10t", "weights": "none", "input_size": 32}


@pytest.fixture
def toy(tmp_path):
    return write(tmp_path, encoder=RANDOM | {"train": {}}, data__limit=80)


def test_a_reader_may_close_the_pipe_of_a_tool():
    # `list_encoders` writes more lines than a closed pipe takes, so that the tool meets the closed end.
    command = [sys.executable, "-u", "tools/list_encoders.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as tool:
        fcntl.fcntl(tool.stdout, fcntl.F_SETPIPE_SZ, 4096)  # else all of them fit before it is closed
        tool.stdout.readline()
        tool.stdout.close()
        assert tool.stderr.read() == ""
    assert tool.returncode == 1


def test_the_list_names_width_license_and_presence():
    listed = tool("list_encoders", "dinov2_vits14")
    assert listed.returncode == 0
    line = next(line for line in listed.stdout.splitlines() if "dinov2_vits14 " in line)
    assert line.split() == ["preset:", "dinov2_vits14", "384", "224", "22", "M", "apache-2.0", "to", "be", "downloaded"]
    assert "moco_v3, arch: vit_base" in tool("list_encoders", "moco").stdout


def test_a_word_that_no_encoder_has_is_an_error():
    listed = tool("list_encoders", "dinosaur")
    assert listed.returncode == 2
    assert "no encoder has 'dinosaur' in its name" in listed.stderr


def test_the_script_does_not_hide_the_package_of_its_name():
    assert "preset: mae_vitb16" in process("list_encoders", "mae").stdout


def test_the_cache_serves_the_training_and_says_so(toy, monkeypatch):
    filled = tool("cache", toy)
    assert filled.returncode == 0, filled.stderr
    assert "71 training images in 1 view(s) and 9 validation images, 512 features" in filled.stdout
    monkeypatch.setattr(cache, "batches", lambda *_: pytest.fail("encoded again"))
    trained = tool("train_rdm", toy, "rdm.train.steps=2")
    assert trained.returncode == 0, trained.stderr
    assert "representations of train images: 71 images in 1 view(s) from" in trained.stdout


def test_a_projection_is_fitted_once_and_names_the_space(toy):
    project = ["projection.width=8", "normalize=per_dataset"]
    assert tool("cache", toy, *project).returncode == 0
    (fitted,) = (toy.parent / "run" / "fitted").iterdir()
    before = fitted.read_bytes()
    for name in ("train_rdm", "train_pixel"):
        done = tool(name, toy, *project, "rdm.train.steps=2", "generator.train.steps=2")
        assert done.returncode == 0, done.stderr
    assert fitted.read_bytes() == before
    other = tool("train_pixel", toy, "projection.width=6", "normalize=per_dataset", "--overwrite")
    assert other.returncode == 2
    assert "pca8/per_dataset" in other.stderr
    assert "pca6/per_dataset" in other.stderr


@pytest.mark.parametrize("labeled", [True, False])
def test_the_report_inspects_an_encoder_with_and_without_labels(tmp_path, labeled):
    if labeled:
        toy = write(tmp_path, encoder=RANDOM | {"train": {}}, data__limit=80)
    else:
        for index in range(40):
            Image.effect_noise((16, 16), 10 + index).convert("RGB").save(tmp_path / f"{index}.png")
        data = {"name": "image_folder", "root": str(tmp_path), "image_size": 16, "validation": 0.3}
        toy = write(tmp_path, encoder=RANDOM | {"train": {}}, data=data)
    done = tool("inspect_encoder", toy, "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    for word in ("alignment", "uniformity", "effective rank", "reference rep-FD", "images per second", "license"):
        assert word in done.stdout
    for word in ("10-NN accuracy (cosine)", "linear probe", "raw pixels", "random weights"):
        assert (word in done.stdout) == labeled
    with Image.open(tmp_path / "report" / "report.png") as picture:
        assert picture.width > 1000


def test_a_representation_that_separates_the_classes_scores_high():
    from rcg.metrics.representation import linear_accuracy, nearest_by_cosine, spectrum

    torch.manual_seed(0)
    labels = torch.arange(200) % 4
    clear = torch.eye(4)[labels] + 0.05 * torch.randn(200, 4)
    assert linear_accuracy(clear[:100], labels[:100], clear[100:], labels[100:]) == 1
    noise = torch.randn(200, 4)
    assert linear_accuracy(noise[:100], labels[:100], noise[100:], labels[100:]) < 0.5
    assert nearest_by_cosine(clear[:3], clear, 1).flatten().tolist() == [0, 1, 2]
    shares = spectrum(torch.diag(torch.tensor([3.0, 1.0])).repeat(2, 1) * torch.tensor([1.0, 1, -1, -1])[:, None])
    torch.testing.assert_close(shares, torch.tensor([0.75, 0.25], dtype=torch.float64))


def test_representations_are_generated_and_shown_before_any_generator_exists(toy):
    train("rdm", toy, "rdm.train.steps=2")
    out = toy.parent / "generated"
    done = tool("sample_rdm", toy, "--num", 20, "--out", out, "--batch-size", 8)
    assert done.returncode == 0, done.stderr
    part = checkpoint.load(out / "representations.safetensors")
    assert part.tensors["z"].shape == (20, 512)
    assert part.facts.data.id.startswith("timm_model:")
    assert (out / "neighbors.png").stat().st_size > 1000
    alone = tool("sample_rdm", toy, "--num", 20, "--out", out, "--batch-size", 20)
    assert alone.returncode == 0
    again = checkpoint.load(out / "representations.safetensors").tensors["z"]
    torch.testing.assert_close(again, part.tensors["z"], atol=1e-4, rtol=1e-4)
    guided = tool("sample_rdm", toy, "--num", 8, "--class", 3, "--probe", 2, "--out", out)
    assert guided.returncode == 0, guided.stderr
    assert checkpoint.load(out / "representations.safetensors").tensors["label"].tolist() == [3] * 8
    shutil.copytree(toy.parent / "run", toy.parent / "weak")
    guided = tool("sample_rdm", toy, "--num", 8, "--weak", toy.parent / "weak", "--guidance", 2, "--out", out)
    assert guided.returncode == 0, guided.stderr
    torch.testing.assert_close(  # guided away from itself, it stays where it is
        checkpoint.load(out / "representations.safetensors").tensors["z"], part.tensors["z"][:8], atol=1e-3, rtol=1e-3
    )
    other = tool("sample_rdm", toy, "encoder.input_size=64")
    assert other.returncode == 2
    assert "give the configuration that the RDM was trained with" in other.stderr


def test_a_sweep_compares_all_samplers_that_an_rdm_can_use(toy):
    train("rdm", toy, "rdm.train.steps=2")
    swept = tool("sweep_rdm", toy, "--steps", 1, 3)
    assert swept.returncode == 0, swept.stderr
    table = (toy.parent / "run" / "rdm" / "samplers.md").read_text()
    assert table in swept.stdout
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert rows == ["| rep-FD (seconds) in so many steps", "| ddim", "| ddpm", "| dpm_solver", "| heun", "| unipc"]
    assert "As configured (name ddim, steps 4" in table
    assert "Each rep-FD compares 9 generated z with 9 z of validation images" in table
    assert "**Warning:** the rep-FD of 9 z is of too few for 512 features" in table
    assert "**Warning:** in 1 step every sampler returns the first estimate" in table
    one = tool("sweep_rdm", toy, "--num", 1)
    assert one.returncode == 2
    assert "--num: expected a whole number from 2" in one.stderr
    beyond = tool("sweep_rdm", toy, "--steps", 2000, "--samplers", "ddim")
    assert beyond.returncode == 2
    assert "the process has 1000 noise levels" in beyond.stderr


def test_an_rdm_with_classes_generates_the_class_asked_for(toy):
    train("rdm", toy, "rdm.train.steps=2", "rdm.condition=class")
    out = toy.parent / "generated"
    settings = ["rdm.condition=class", "--num", 5, "--out", out]
    assert tool("sample_rdm", toy, *settings, "--class", 3, "--guidance", 2).returncode == 0
    assert checkpoint.load(out / "representations.safetensors").tensors["label"].tolist() == [3] * 5
    table = (out / "classes.md").read_text().splitlines()
    assert "| class | generated | probe agrees | on real z | rep-FD | reference | of so many z |" in table
    assert any(line.startswith("| 3 | 5 | ") for line in table)
    assert not any("nan" in line for line in table)
    beyond = tool("sample_rdm", toy, *settings, "--class", 10)
    assert beyond.returncode == 2
    assert "there is no class 10: classes are 0 (0) to 9" in beyond.stderr
    for arguments, said in (
        (["data.limit=60"], "was not trained on the 51 images that are now the training images of digits"),
        (["data.split_seed=1"], "was not trained on the 75 images that are now"),
        (["--probe", 2, "--class", 3], "--probe was given, but it only guides an RDM without a condition"),
        (["--weak", toy.parent / "run"], "--weak was given, but a guidance of 1 does not use it"),
    ):
        refused = tool("sample_rdm", toy, *settings, *arguments)
        assert refused.returncode == 2, arguments
        assert said in refused.stderr


def test_an_rdm_is_conditioned_on_vectors_from_a_file(toy):
    vectors = toy.parent / "vectors.safetensors"
    settings = ["rdm.condition=vector", f"rdm.vectors={vectors}"]
    save_file({"vectors": torch.randn(80, 6)}, vectors)
    short = tool("train_rdm", toy, *settings)
    assert short.returncode == 2
    assert "holds 80 vectors, but the data set has 1797 images: one row per image" in short.stderr
    save_file({"embedding": torch.randn(1797, 6)}, vectors)
    assert (
        "must hold a floating-point tensor 'vectors' of shape (N, D); it holds embedding (1797, 6)"
        in tool("train_rdm", toy, *settings).stderr
    )
    save_file({"vectors": torch.randn(1797, 6)}, vectors)
    trained = tool("train_rdm", toy, *settings, "rdm.train.steps=2")
    assert trained.returncode == 0, trained.stderr
    out = toy.parent / "generated"
    silent = tool("sample_rdm", toy, *settings, "--num", 5, "--out", out)
    assert silent.returncode == 2
    assert "the RDM is conditioned on vectors of 6 numbers: give some with --vectors FILE" in silent.stderr
    classes = tool("sample_rdm", toy, *settings, "--num", 5, "--vectors", vectors, "--class", 1)
    assert classes.returncode == 2
    assert "--class was given, but the RDM is conditioned on vectors" in classes.stderr
    done = tool("sample_rdm", toy, *settings, "--num", 5, "--out", out, "--vectors", vectors, "--guidance", 2)
    assert done.returncode == 0, done.stderr
    part = checkpoint.load(out / "representations.safetensors")
    assert torch.equal(part.tensors["vector"], load_file(vectors)["vectors"][:5])
    missing = tool("train_rdm", toy, "rdm.condition=vector")
    assert missing.returncode == 2
    assert "vectors names the file for condition: vector" in missing.stderr


def test_an_experiment_may_end_with_its_rdm(tmp_path):
    path = write(tmp_path, encoder=RANDOM | {"train": {}}, data__limit=80)
    experiment = yaml.safe_load(path.read_text())
    del experiment["generator"]
    path.write_text(yaml.safe_dump(experiment))
    assert tool("train_rdm", path, "rdm.train.steps=2").returncode == 0
    pixel = tool("train_pixel", path)
    assert pixel.returncode == 2
    assert "add a section generator" in pixel.stderr


def test_folders_of_two_classes_serve_every_table(tmp_path):
    for name in ("$cat$", "собака|<b>"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(24):
            Image.effect_noise((16, 16), 10 + index).convert("RGB").save(tmp_path / "data" / name / f"{index}.png")
    data = {"name": "image_folder", "root": str(tmp_path / "data"), "image_size": 16, "validation": 0.3}
    toy = write(tmp_path, encoder=RANDOM | {"train": {}}, data=data)
    train("rdm", toy, "rdm.train.steps=2")
    done = tool("sample_rdm", toy, "--num", 6, "--class", 1, "--probe", 2)
    assert done.returncode == 0, done.stderr
    assert "| собака\\|<b> | 6 | " in done.stdout
    done = tool("inspect_encoder", toy)
    assert done.returncode == 0, done.stderr
    assert "linear probe" in done.stdout
    assert tool("report", tmp_path / "run").returncode == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<b>" not in page
    assert "<td>собака|&lt;b&gt;</td>" in page
    assert "<h2>Encoder timm_model</h2>" in page
