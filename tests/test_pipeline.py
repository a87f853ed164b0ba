"""A trained run sampled, saved, moved and loaded again."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.encoding.representation import restore_encoder
from rcg.pipeline import Pipeline
from rcg.visual.grids import to_uint8
from tests.toy import ROOT, tool, write


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All stages of a toy experiment, with a class-conditional generator beside the representation-conditional one."""
    folder = tmp_path_factory.mktemp("pipeline")
    path = write(folder, generator__train__steps=40)
    for stage, *more in (
        ["train_encoder"],
        ["train_rdm"],
        ["train_pixel"],
        ["train_pixel", "generator.condition=class"],
    ):
        done = tool(stage, path, *more)
        assert done.returncode == 0, done.stderr
    return folder / "run"


def images(folder):
    return [np.asarray(Image.open(path)).astype(int) for path in sorted((folder / "images").glob("*.png"))]


def test_the_same_seed_gives_the_same_images_whatever_the_batch_size(run, tmp_path):
    for size in (7, 3):
        arguments = [run, "--generator", "dit", "--num", 7, "--seed", 4, "--guidance", 1.5, "--batch-size", size]
        done = tool("sample", *arguments, "--save-images", "--out", tmp_path / str(size))
        assert done.returncode == 0, done.stderr
    one, other = images(tmp_path / "7"), images(tmp_path / "3")
    assert len(one) == len(other) == 7
    assert max(np.abs(a - b).max() for a, b in zip(one, other, strict=True)) <= 1
    assert np.abs(one[0] - one[1]).max() > 1


def test_the_same_seed_gives_the_same_images_whatever_the_number_of_processes(run, tmp_path):
    arguments = [run, "--generator", "dit", "--num", 7, "--seed", 4, "--batch-size", 2, "--save-images"]
    assert tool("sample", *arguments, "--out", tmp_path / "one").returncode == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    command = [*launch, ROOT / "tools" / "sample.py", *arguments, "--out", tmp_path / "two"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    one, two = images(tmp_path / "one"), images(tmp_path / "two")
    assert len(one) == len(two) == 7
    assert max(np.abs(a - b).max() for a, b in zip(one, two, strict=True)) <= 1
    assert json.loads((tmp_path / "two" / "samples.json").read_text())["processes"] == 2
    galleries = [np.asarray(Image.open(tmp_path / name / "gallery.png")).astype(int) for name in ("one", "two")]
    assert np.abs(galleries[0] - galleries[1]).max() <= 1


def test_mixed_precision_rounds_and_does_no_more(run):
    exact, rounded = Pipeline.from_run(run, "dit"), Pipeline.from_run(run, "dit").to("cpu", "bf16")
    multiplied = []
    rounded.generator.network.register_forward_hook(lambda module, inputs, output: multiplied.append(output.dtype))
    a, b = (pipeline.sample(range(6), seed=1, guidance=1.5) for pipeline in (exact, rounded))
    assert set(multiplied) == {torch.bfloat16}
    assert b.images.dtype == b.z.dtype == torch.float32
    assert 0 < float((a.images - b.images).abs().mean()) < 0.03
    with pytest.raises(UserError, match="fp16, which needs a GPU"):
        exact.to("cpu", "fp16")


def test_images_can_be_painted_from_representations_that_were_drawn_before(run, tmp_path):
    toy = run.parent / "toy.yaml"
    drawn = tool("sample_rdm", toy, "--num", 5, "--seed", 4, "--out", tmp_path / "z")
    assert drawn.returncode == 0, drawn.stderr
    common = [run, "--generator", "dit", "--num", 5, "--seed", 4, "--save-images"]
    file = tmp_path / "z" / "representations.safetensors"
    assert tool("sample", *common, "--out", tmp_path / "one").returncode == 0
    painted = tool("sample", *common, "--representations", file, "--batch-size", 2, "--out", tmp_path / "two")
    assert painted.returncode == 0, painted.stderr
    pairs = zip(images(tmp_path / "one"), images(tmp_path / "two"), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) <= 1
    more = tool("sample", run, "--generator", "dit", "--num", 6, "--representations", file, "--out", tmp_path / "three")
    assert more.returncode == 2
    assert "holds 5 representations: --num 6 is more" in more.stderr
    foreign = tool("sample", run, "--generator", "dit-class", "--representations", file, "--out", tmp_path / "three")
    assert foreign.returncode == 2
    assert "but the generator is told labels" in foreign.stderr


def test_a_seed_is_a_universe_of_its_own(run):
    pipeline = Pipeline.from_run(run, "dit")
    first, second = (pipeline.sample([0, 1], seed=seed).images for seed in (0, 1))
    assert (first - second).abs().max() > 0.01


def test_classes_are_dealt_out_evenly_or_as_asked(run):
    pipeline = Pipeline.from_run(run, "dit-class")
    assert pipeline.sample(range(12)).labels.tolist() == [*range(10), 0, 1]
    assert pipeline.sample(range(3), label=7).labels.tolist() == [7, 7, 7]
    drawn = pipeline.sample(range(30), labels="random").labels
    assert drawn.tolist() != pipeline.sample(range(30)).labels.tolist()
    assert drawn.unique().numel() > 5
    assert torch.equal(pipeline.sample(range(10, 20), labels="random").labels, drawn[10:20])
    assert not torch.equal(pipeline.sample(range(30), seed=1, labels="random").labels, drawn)
    with pytest.raises(UserError, match="class 10 is out of range"):
        pipeline.sample([0], label=10)


def test_several_generators_ask_for_a_choice(run):
    with pytest.raises(UserError, match=r"several generators \(dit, dit-class\)"):
        Pipeline.from_run(run)


def test_a_saved_pipeline_gives_the_same_images(run, tmp_path):
    pipeline = Pipeline.from_run(run, "dit")
    folder = pipeline.save_pretrained(tmp_path / "saved")
    again = Pipeline.from_pretrained(folder)
    assert torch.equal(pipeline.sample(range(3)).images, again.sample(range(3)).images)
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "encoder.safetensors",
        "generator.safetensors",
        "rdm.safetensors",
    ]
    assert (folder / "README.md").read_text().startswith("---\n")
    done = tool("sample", folder, "--num", 2, "--out", tmp_path / "gallery")
    assert done.returncode == 0, done.stderr


def test_push_to_hub_uploads_what_save_pretrained_writes(run, monkeypatch):
    uploaded = {}

    class Hub:
        def create_repo(self, repository, private, exist_ok):
            uploaded["repository"] = (repository, private)

        def upload_folder(self, repo_id, folder_path, commit_message):
            uploaded["files"] = sorted(os.listdir(folder_path))
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert Pipeline.from_run(run, "dit").push_to_hub("me/digits") == "https://hub/me/digits"
    assert uploaded["repository"] == ("me/digits", True)
    assert "generator.safetensors" in uploaded["files"]


def test_from_pretrained_reads_the_hub(run, tmp_path, monkeypatch):
    saved = Pipeline.from_run(run, "dit").save_pretrained(tmp_path / "hub")
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision))
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    pipeline = Pipeline.from_pretrained("me/digits", revision="v1")
    assert asked == [("me/digits", "v1")]
    assert pipeline.rdm is not None


def test_a_name_that_is_neither_folder_nor_repository_is_refused():
    with pytest.raises(UserError, match="neither a local folder nor a repository"):
        Pipeline.from_pretrained("nobody/nothing-of-this-name")


def test_a_generator_without_its_rdm_says_what_to_do(run):
    part = checkpoint.load(run / "dit" / checkpoint.FILE)
    with pytest.raises(UserError, match=r"run tools/train_rdm\.py"):
        Pipeline(part)


def test_a_checkpoint_of_another_version_is_refused_by_its_unknown_key(run, tmp_path):
    painted, rdm, encoder = (checkpoint.load(run / name / checkpoint.FILE) for name in ("dit", "rdm", "encoder"))
    written = "checkpoint was written by another version of rcg: gone: unknown key; known: "
    for part in (rdm, encoder):
        part.config["gone"] = 1
    with pytest.raises(UserError, match=f"the rdm's {written}"):
        Pipeline(painted, rdm)
    checkpoint.save(tmp_path / checkpoint.FILE, encoder)
    with pytest.raises(UserError, match=f"the encoder's {written}"):
        restore_encoder(tmp_path / checkpoint.FILE)
    painted.config["gone"] = 1
    with pytest.raises(UserError, match=f"the generator's {written}"):
        Pipeline(painted)


def test_given_representations_are_painted_instead_of_generated_ones(run):
    pipeline = Pipeline.from_run(run, "dit")
    z = torch.zeros(2, 8)
    drawn = pipeline.sample([0, 1], z=z)
    assert torch.equal(drawn.z, z)


def test_eight_bits_are_rounded_and_not_cut_off():
    assert to_uint8(torch.tensor([0.0, 0.4999 / 255, 0.6 / 255, 254.5001 / 255, 1.2, -0.1])).tolist() == [
        0,
        0,
        1,
        255,
        255,
        0,
    ]


def test_the_summary_names_quality_cost_and_gallery(run, tmp_path):
    done = tool("sample", run, "--generator", "dit", "--num", 2, "--out", run / "gallery")
    assert done.returncode == 0, done.stderr
    done = tool("summary", run)
    for words in ("10-NN accuracy", "rep-FD", "floor", "recall", "novelty", "images/s", "20 steps in"):
        assert words in done.stdout
    for picture in (run / "gallery" / "gallery.png", run / "curves.png"):
        assert str(picture) in done.stdout
        with Image.open(picture) as opened:
            assert opened.width > 100
