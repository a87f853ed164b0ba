"""A trained run sampled, saved, moved and loaded again."""

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.core import checkpoint
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import NETWORKS
from rcg.diffusion.model import build, model_part, restore
from rcg.diffusion.networks.rep_mlp import RepMLP
from rcg.encoding.encoder import load_encoder
from rcg.encoding.run_folder import RunFolder
from rcg.pipeline import Pipeline, SamplingOptions
from rcg.visual.grids import to_uint8
from tests.toy import ROOT, complaint, images, snapshot, tool, train, write


@pytest.fixture(scope="module")
def run(toy_run, tmp_path_factory):
    """The toy run, with a class-conditional generator beside the representation-conditional one."""
    folder = tmp_path_factory.mktemp("pipeline")
    shutil.copytree(toy_run / "run", folder / "run")
    train("generator", write(folder), "generator.condition=class")
    return folder / "run"


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
    exact, rounded = Pipeline.from_pretrained(run, "dit"), Pipeline.from_pretrained(run, "dit").to("cpu", "bf16")
    multiplied = []
    rounded.generator.network.register_forward_hook(lambda module, inputs, output: multiplied.append(output.dtype))
    a, b = (pipeline.generate(range(6), SamplingOptions(seed=1, guidance=1.5)) for pipeline in (exact, rounded))
    assert set(multiplied) == {torch.bfloat16}
    assert b.images.dtype == b.z.dtype == torch.float32
    assert 0 < float((a.images - b.images).abs().mean()) < 0.03
    with pytest.raises(UserError, match="precision fp16 needs a GPU"):
        exact.to("cpu", "fp16")


def test_images_can_be_generated_from_representations_that_were_generated_before(run, tmp_path):
    toy = run.parent / "toy.yaml"
    done = tool("sample_rdm", toy, "--num", 5, "--seed", 4, "--out", tmp_path / "z")
    assert done.returncode == 0, done.stderr
    common = [run, "--generator", "dit", "--num", 5, "--seed", 4, "--save-images"]
    file = tmp_path / "z" / "representations.safetensors"
    assert tool("sample", *common, "--out", tmp_path / "one").returncode == 0
    done = tool("sample", *common, "--representations", file, "--batch-size", 2, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    pairs = zip(images(tmp_path / "one"), images(tmp_path / "two"), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) <= 1
    more = tool("sample", run, "--generator", "dit", "--num", 6, "--representations", file, "--out", tmp_path / "three")
    assert more.returncode == 2
    assert "holds 5 representations: --num 6 is more" in more.stderr
    foreign = tool("sample", run, "--generator", "dit-class", "--representations", file, "--out", tmp_path / "three")
    assert foreign.returncode == 2
    assert "but the generator is conditioned on labels" in foreign.stderr


def test_another_seed_gives_other_images(run):
    pipeline = Pipeline.from_pretrained(run, "dit")
    first, second = (pipeline.generate([0, 1], SamplingOptions(seed=seed)).images for seed in (0, 1))
    assert (first - second).abs().max() > 0.01


def test_classes_are_assigned_evenly_or_as_asked(run):
    pipeline = Pipeline.from_pretrained(run, "dit-class")
    assert pipeline.generate(range(12)).labels.tolist() == [*range(10), 0, 1]
    assert pipeline.generate(range(3), SamplingOptions(label=7)).labels.tolist() == [7, 7, 7]
    random = SamplingOptions(labels="random", steps=1)
    labels = pipeline.generate(range(30), random).labels
    assert labels.tolist() != pipeline.generate(range(30)).labels.tolist()
    assert labels.unique().numel() > 5
    assert torch.equal(pipeline.generate(range(10, 20), random).labels, labels[10:20])
    assert not torch.equal(pipeline.generate(range(30), replace(random, seed=1)).labels, labels)
    with pytest.raises(UserError, match=r"class 10 is out of range: classes are 0 \(0\) to 9"):
        pipeline.generate([0], SamplingOptions(label=10))


def with_classes(part, cond):
    """A part of the toy run as if it were conditioned on the labels `cond`, or on nothing."""
    model = build(
        restore(part, NETWORKS).config.model_copy(update={"condition": "class"}), RepMLP, part.facts.data, cond
    )
    return model_part("rdm", model, part.facts.model_copy(update={"classes": (), "fingerprint": ""}))


def test_an_rdm_of_classes_without_names_gets_their_numbers(run):
    folder = RunFolder(run)
    rdm = with_classes(folder.rdm.part(), Space((), vocab=7, id="labels"))
    pipeline = Pipeline(folder.stage_folder("dit").part(), rdm)
    assert pipeline.generate(range(9)).labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    with pytest.raises(UserError, match="class 7 is out of range"):
        pipeline.generate([0], SamplingOptions(label=7))
    # What the RDM knows means nothing where it generates nothing.
    z = torch.zeros(2, 8)
    assert pipeline.generate([0, 1], z=z).labels is None
    with pytest.raises(UserError, match="it is the RDM's, and representations are given"):
        pipeline.generate([0, 1], SamplingOptions(label=3), z=z)
    of_classes = Pipeline(folder.stage_folder("dit-class").part(), rdm)
    assert of_classes.generate(range(11)).labels.tolist()[-1] == 0


def test_several_generators_ask_for_a_choice(run):
    with pytest.raises(UserError, match=r"several generators \(dit, dit-class\)"):
        Pipeline.from_pretrained(run)


def test_a_saved_pipeline_gives_the_same_images(run, tmp_path):
    pipeline = Pipeline.from_pretrained(run, "dit")
    folder = pipeline.save_pretrained(tmp_path / "saved")
    again = Pipeline.from_pretrained(folder)
    assert torch.equal(pipeline.generate(range(3)).images, again.generate(range(3)).images)
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "encoder.safetensors",
        "generator.safetensors",
        "rdm.safetensors",
        "transform.safetensors",
    ]
    assert (folder / "README.md").read_text().startswith("---\n")
    done = tool("sample", folder, "--num", 2, "--out", tmp_path / "gallery")
    assert done.returncode == 0, done.stderr


def test_push_to_hub_uploads_what_save_pretrained_writes(run, monkeypatch):
    uploaded = {}

    class Hub:
        def __init__(self, token):
            uploaded["token"] = token

        def create_repo(self, repository, private, exist_ok):
            uploaded["repository"] = (repository, private)

        def upload_folder(self, repo_id, folder_path, commit_message):
            uploaded["files"] = sorted(os.listdir(folder_path))
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert Pipeline.from_pretrained(run, "dit").push_to_hub("me/digits", "mit", token="t") == "https://hub/me/digits"
    assert uploaded["token"] == "t"
    assert uploaded["repository"] == ("me/digits", True)
    assert "generator.safetensors" in uploaded["files"]


def test_a_repository_on_the_hub_is_loaded(run, tmp_path, monkeypatch):
    saved = Pipeline.from_pretrained(run, "dit").save_pretrained(tmp_path / "hub")
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    options = {"revision": "v1", "token": "t", "cache_dir": tmp_path, "local_files_only": True}
    pipeline = Pipeline.from_pretrained("me/digits", **options)
    (name, passed) = asked[0]
    assert name == "me/digits"
    assert options.items() <= passed.items()
    assert pipeline.rdm is not None
    monkeypatch.chdir(tmp_path)
    done = tool("sample", "me/digits", "--num", 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "digits" / "gallery" / "gallery.png").is_file()


def test_a_name_that_is_neither_folder_nor_repository_is_refused():
    with pytest.raises(UserError, match="neither a local folder nor a repository"):
        Pipeline.from_pretrained("nobody/nothing-of-this-name")


def test_a_generator_without_its_rdm_needs_representations_or_says_what_to_do(run):
    folder = RunFolder(run)
    pipeline = Pipeline(folder.stage_folder("dit").part(), encoder=folder.encoder.part())
    for generate in (pipeline.generate, pipeline.generate_z, pipeline.sample):
        with pytest.raises(UserError, match=r"run tools/train_rdm\.py"):
            generate(2 if generate == pipeline.sample else [0, 1])
    z = pipeline.represent(torch.rand(2, 3, 16, 16))
    complete = Pipeline.from_pretrained(run, "dit")
    assert torch.equal(pipeline.generate([0, 1], z=z).images, complete.generate([0, 1], z=z).images)


def test_a_checkpoint_of_another_version_is_refused_by_its_unknown_key(run, tmp_path):
    folder = RunFolder(run)
    generator, rdm, encoder = (stage.part() for stage in (folder.stage_folder("dit"), folder.rdm, folder.encoder))
    written = "checkpoint was written by another version of rcg: gone: unknown key; known: "
    for part in (rdm, encoder):
        part.config["gone"] = 1
    with pytest.raises(UserError, match=f"the rdm's {written}"):
        Pipeline(generator, rdm)
    checkpoint.save(tmp_path / "encoder.safetensors", encoder)
    with pytest.raises(UserError, match=f"the encoder's {written}"):
        load_encoder(tmp_path / "encoder.safetensors")
    generator.config["gone"] = 1
    with pytest.raises(UserError, match=f"the generator's {written}"):
        Pipeline(generator)


def test_given_representations_replace_generated_ones(run):
    pipeline = Pipeline.from_pretrained(run, "dit")
    z = torch.zeros(2, 8)
    samples = pipeline.generate([0, 1], z=z)
    assert torch.equal(samples.z, z)
    assert not torch.equal(samples.images, pipeline.generate([0, 1]).images)


def sampled(run, out, *arguments, num=7):
    done = tool("sample", run, "--generator", "dit", "--num", num, "--batch-size", 2, *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    return done


def stop_after(batches, monkeypatch):
    """Let sampling be interrupted when it has generated so many batches."""
    generate, done = Pipeline.generate, []

    def sample(self, *args, **options):
        if len(done) == batches:
            raise KeyboardInterrupt
        done.append(args[0])
        return generate(self, *args, **options)

    monkeypatch.setattr(Pipeline, "generate", sample)
    return done


def test_samples_that_were_interrupted_go_on_where_they_stopped(run, tmp_path, monkeypatch):
    sampled(run, tmp_path / "whole", "--save-images")
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert (
            tool(
                "sample",
                run,
                "--generator",
                "dit",
                "--num",
                7,
                "--batch-size",
                2,
                "--save-images",
                "--out",
                tmp_path / "parts",
            ).returncode
            == 130
        )
    half = f".writing-{platform.node()}-{2**30}-000004.png.part"  # what SIGKILL leaves
    (tmp_path / "parts" / "images" / half).write_bytes(b"half")
    assert sorted(p.name for p in (tmp_path / "parts" / "images").glob("*.png")) == [f"{i:06d}.png" for i in range(4)]
    done = stop_after(99, monkeypatch)
    said = sampled(run, tmp_path / "parts", "--save-images")
    assert done == [[4, 5], [6]]
    assert "7 images, 3 of them generated" in said.stdout
    whole, parts = (snapshot(tmp_path / name) for name in ("whole", "parts"))
    relative = [
        {str(p.relative_to(tmp_path / n)): v for p, v in s.items() if p.name != "samples.json"}
        for n, s in (("whole", whole), ("parts", parts))
    ]
    assert relative[0] == relative[1]
    again = sampled(run, tmp_path / "parts", "--save-images", "--guidance", "1")  # as configured
    assert "0 of them generated" in again.stdout
    assert json.loads((tmp_path / "parts" / "samples.json").read_text())["images_per_second"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--num", 7, "--seed", 1], "holds samples of other settings (seed: 0 -> 1)"),
        (["--num", 7, "--guidance", 1.5], "holds samples of other settings (guidance.scale:"),
        (
            ["--num", 7, "--generator", "dit-class"],
            "holds samples of other settings (condition: representation -> class",
        ),
        (["--num", 4], "holds 7 samples, more than --num 4"),
    ],
)
@pytest.mark.parametrize("save", [["--save-images"], []])
def test_samples_of_two_commands_do_not_mix(run, tmp_path, arguments, sentence, save):
    sampled(run, tmp_path / "out", "--save-images")
    before = snapshot(tmp_path)
    done = tool("sample", run, "--generator", "dit", *arguments, *save, "--out", tmp_path / "out")
    assert sentence in complaint(done)
    assert snapshot(tmp_path) == before


def test_more_samples_of_the_same_settings_are_added(run, tmp_path):
    sampled(run, tmp_path / "out", "--save-images", num=4)
    sampled(run, tmp_path / "out", "--save-images", num=7)
    sampled(run, tmp_path / "once", "--save-images", num=7)
    assert all(np.array_equal(a, b) for a, b in zip(images(tmp_path / "out"), images(tmp_path / "once"), strict=True))
    gallery, once = ((tmp_path / name / "gallery.png").read_bytes() for name in ("out", "once"))
    assert gallery == once


def test_pictures_of_unknown_settings_are_left_alone(run, tmp_path):
    sampled(run, tmp_path / "out", "--save-images", num=2)
    for content in (None, "{"):
        settings = tmp_path / "out" / "images" / "settings.json"
        settings.unlink() if content is None else settings.write_text(content)
        done = tool("sample", run, "--generator", "dit", "--num", 2, "--save-images", "--out", tmp_path / "out")
        assert ("but no settings.json" if content is None else "is not JSON") in complaint(done)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["rdm", "generator", "decoder", "representation"])
def test_what_is_not_finite_is_refused_and_says_where_it_began(run, where, value, monkeypatch):
    pipeline, z = Pipeline.from_pretrained(run, "dit"), None
    if where == "rdm":
        pipeline.rdm.network.output.bias[0] = value
    elif where == "generator":
        pipeline.generator.network.output.bias[0] = value
    elif where == "decoder":
        monkeypatch.setattr(pipeline.autoencoder, "decode", lambda latent: latent * value)
    else:
        z = torch.full((2, 8), value)
    said = {
        "rdm": "what the RDM generates",
        "generator": "what dit generates",
        "decoder": "what the autoencoder decodes",
        "representation": "what was given as representation",
    }
    with pytest.raises(UserError, match=f"{said[where]} is not finite"):
        pipeline.generate([0, 1], z=z)


def test_a_tool_writes_nothing_that_is_not_finite(run, tmp_path, monkeypatch):
    restore = Pipeline._load_run.__func__

    def diverged(cls, *place):
        pipeline = restore(cls, *place)
        pipeline.generator.network.output.bias[0] = float("nan")
        return pipeline

    monkeypatch.setattr(Pipeline, "_load_run", classmethod(diverged))
    for name in ("sample", "evaluate"):
        options = ["--inception", "none"] if name == "evaluate" else []
        done = tool(name, run, "--generator", "dit", "--num", 4, "--save-images", *options, "--out", tmp_path / "out")
        assert "what dit generates is not finite" in complaint(done)
        assert not list((tmp_path / "out").rglob("*.png"))


def test_an_rdm_and_a_generator_of_different_images_are_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    stage = RunFolder(tmp_path / "run").rdm
    part = stage.part()
    for fingerprint, fits in (("0123456789abcdef", False), ("", True)):  # a converted part does not know its images
        facts = part.facts.model_copy(update={"fingerprint": fingerprint})
        checkpoint.save(stage.checkpoint, replace(part, facts=facts))
        if fits:
            Pipeline.from_pretrained(tmp_path / "run", "dit")
        else:
            with pytest.raises(UserError, match="the RDM and the generator were trained on different images"):
                Pipeline.from_pretrained(tmp_path / "run", "dit")
            Pipeline.from_pretrained(tmp_path / "run", "dit-class")  # it takes nothing from the RDM


@pytest.mark.parametrize(
    "z", [torch.zeros(2, 7), torch.zeros(3, 8), torch.zeros(8), torch.zeros(2, 8, dtype=torch.long)]
)
def test_given_representations_of_another_shape_or_type_are_refused(run, z):
    with pytest.raises(UserError, match=r"z must be \(2, 8\) floating-point numbers, not"):
        Pipeline.from_pretrained(run, "dit").generate([0, 1], z=z)
    with pytest.raises(UserError, match="dit-class is not conditioned on representations, but z was given"):
        Pipeline.from_pretrained(run, "dit-class").generate([0, 1], z=z)


@pytest.mark.parametrize(("number", "batch_size"), [(0, 64), (-1, 64), (3, 0)])
def test_no_images_are_refused(run, number, batch_size):
    with pytest.raises(UserError, match="are at least 1, not"):
        Pipeline.from_pretrained(run, "dit").sample(number, batch_size=batch_size)


def test_eight_bits_are_rounded_and_not_cut_off():
    assert to_uint8(torch.tensor([0.0, 0.4999 / 255, 0.6 / 255, 254.5001 / 255, 1.2, -0.1])).tolist() == [
        0,
        0,
        1,
        255,
        255,
        0,
    ]


def test_the_summary_names_quality_cost_and_gallery(run):
    done = tool("sample", run, "--generator", "dit", "--num", 2, "--out", run / "gallery")
    assert done.returncode == 0, done.stderr
    done = tool("summary", run)
    for words in ("10-NN accuracy", "rep-FD", "reference", "recall", "novelty", "images/s", "20 steps in"):
        assert words in done.stdout
    picture = run / "gallery" / "gallery.png"
    assert str(picture) in done.stdout
    with Image.open(picture) as opened:
        assert opened.width > 100


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "at least one step, not 0"),
        ({"rdm_steps": -1}, "at least one step, not -1"),
        ({"seed": 1.5}, "a seed is a whole number"),
        ({"labels": "x"}, "labels are balanced or random, not 'x'"),
        ({"sdedit_strength": 2.0}, "a strength of SDEdit"),
        ({"sdedit_strength": float("nan")}, "a strength of SDEdit"),
    ],
)
def test_options_without_meaning_are_refused(toy_run, options, words):
    with pytest.raises(UserError, match=words):
        Pipeline.from_pretrained(toy_run / "run").generate([0], SamplingOptions(**options))


def test_samples_need_indices_and_as_many_representations(toy_run):
    pipeline = Pipeline.from_pretrained(toy_run / "run")
    for indices in ([], [-1]):
        with pytest.raises(UserError, match="samples are generated by their indices"):
            pipeline.generate(indices)
    with pytest.raises(UserError, match="4 images need as many representations, and z holds 2"):
        pipeline.sample(4, z=torch.zeros(2, *pipeline.space.shape), batch_size=1)
