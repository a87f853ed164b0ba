"""Autoencoders trained in a run, given as files, cached, and carried along by the pipeline."""

import json
import shutil

import pytest
import torch
import yaml

from rcg.config import load_experiment
from rcg.core import checkpoint
from rcg.encoding.autoencoder import open_autoencoder
from rcg.encoding.run_folder import Mode, RunFolder
from rcg.pipeline import Pipeline
from rcg.training.tasks.generator import ConditionedImages
from tests.toy import TOKENIZER, complaint, tool, train, write

KL = {key: value for key, value in TOKENIZER.items() if key != "quantizer"}
KL |= {"name": "kl", "attention": [], "groups": 32}  # as published files have them
RANDOM = {"name": "timm_model", "model": "resnet10t", "weights": "none", "input_size": 32, "train": {}}


def toy(folder, autoencoder=KL, **changes):
    folder.mkdir(exist_ok=True)
    section = {**autoencoder, "train": {**autoencoder["train"], "adversarial": 0.8, "adversarial_start": 2}}
    section["train"]["discriminator_width"] = 8
    common = {"encoder": RANDOM, "data__limit": 80, "generator__autoencoder": section, "generator__patch": 2}
    return write(folder, **common | {"generator__train__steps": 3, "rdm__train__steps": 2} | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a KL autoencoder trained against a discriminator, an RDM and a DiT in its latents."""
    path = toy(tmp_path_factory.mktemp("autoencoder") / "a")
    for stage in ("autoencoder", "rdm", "generator"):
        train(stage, path)
    return path


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained.parent / "run", tmp_path / "run")
    return toy(tmp_path)


def log(path):
    lines = [json.loads(line) for line in RunFolder(path.parent / "run").autoencoder.log.read_text().splitlines()]
    return {key: value for line in lines for key, value in line.items()}


def test_training_reports_how_faithful_it_is_and_names_what_it_does_not_report(tmp_path):
    path = toy(tmp_path, TOKENIZER, generator__autoencoder__train__log_every=1)
    done = tool("train_autoencoder", path)
    assert done.returncode == 0, done.stderr
    assert "rFID is not reported" in done.stdout
    assert "encoder_fd is, in the encoder's space" in done.stdout
    logged = log(path)
    metrics = ("psnr", "ssim", "code_usage", "perplexity", "encoder_fd", "validation_l1", "validation_perceptual")
    assert all(key in logged for key in (*metrics, "l1", "perceptual", "commitment", "adversarial", "discriminator"))
    assert len(list((tmp_path / "run" / "autoencoder" / "samples").glob("reconstructions-*.png"))) == 1
    summary = tool("summary", tmp_path / "run")
    assert "PSNR" in summary.stdout
    assert "code usage" in summary.stdout


def test_the_rfid_names_the_layer_that_it_was_measured_with(tmp_path, monkeypatch):
    asked = []

    class Inception(torch.nn.Module):
        def __init__(self, path, tap):
            super().__init__()
            asked.append((path, tap))

        def forward(self, image):
            return image.flatten(1)[:, :4]

    monkeypatch.setattr("rcg.metrics.inception.Inception", Inception)
    settings = {"inception": "inception.pth", "inception_tap": "768", "perceptual": "none"}
    done = tool(
        "train_autoencoder", toy(tmp_path, **{f"generator__autoencoder__train__{k}": v for k, v in settings.items()})
    )
    assert done.returncode == 0, done.stderr
    assert asked == [("inception.pth", "768")]
    assert log(tmp_path / "toy.yaml")["rfid_768"] >= 0
    assert "is not reported" not in done.stdout


def test_a_generator_learns_in_the_latents_of_its_run_and_generates_images(trained, tmp_path):
    pipeline = Pipeline.from_pretrained(trained.parent / "run")
    assert pipeline.generator.data.shape == (4, 8, 8)
    images = pipeline.generate(range(2)).images
    assert images.shape == (2, 3, 16, 16)
    folder = pipeline.save_pretrained(tmp_path / "saved")
    assert (folder / "autoencoder.safetensors").is_file()
    assert torch.equal(Pipeline.from_pretrained(folder).generate(range(2)).images, images)
    done = tool("sample", trained.parent / "run", "--num", 2, "--out", tmp_path / "gallery")
    assert done.returncode == 0, done.stderr


def test_a_generator_in_pixels_beside_it_does_not_need_it(copy, tmp_path):
    train("generator", copy, "generator.autoencoder={name: pixels}", mode=Mode.OVERWRITE)
    assert Pipeline.from_pretrained(tmp_path / "run").generator.data.id == "pixels"


def test_an_autoencoder_may_come_from_a_file_of_another_run(trained, tmp_path):
    file = RunFolder(trained.parent / "run").autoencoder.checkpoint
    path = toy(tmp_path, generator__autoencoder__weights=str(file))
    for stage in ("rdm", "generator"):
        train(stage, path)
    assert not (tmp_path / "run" / "autoencoder").exists()
    pipeline, other = (Pipeline.from_pretrained(folder / "run") for folder in (tmp_path, trained.parent))
    assert pipeline.generator.data == other.generator.data
    assert "autoencoder" in pipeline.parts
    assert "so there is nothing to train" in complaint(tool("train_autoencoder", path))


def test_a_published_file_may_be_used_as_it_is_or_be_where_training_starts(trained, tmp_path):
    file = tmp_path / "published.ckpt"
    assert tool("convert", "autoencoder", trained.parent / "run", file, "--back").returncode == 0
    narrow = toy(tmp_path, {**KL, "groups": 8}, generator__autoencoder__weights=str(file), generator__condition="none")
    assert "set generator.autoencoder.groups=32" in complaint(tool("train_pixel", narrow))
    used = toy(tmp_path, generator__autoencoder__weights=str(file), generator__condition="none")
    train("generator", used)
    std = Pipeline.from_pretrained(tmp_path / "run").parts["autoencoder"].tensors["standardize.std"]
    assert std == pytest.approx(1 / 0.18215)
    start = {"generator__autoencoder__train__init_from": str(file), "generator__autoencoder__train__lr": 1e-12}
    started = toy(tmp_path, **start)
    parts = [RunFolder(trained.parent / "run").autoencoder.part(), train("autoencoder", started).part()]
    for name, value in parts[0].tensors.items():
        torch.testing.assert_close(parts[1].tensors[name], value, atol=1e-5, rtol=1e-2)


def test_a_decoder_alone_is_trained_further_and_generators_of_its_latents_stay(copy, tmp_path):
    file = tmp_path / "before.safetensors"
    own = RunFolder(tmp_path / "run").autoencoder.checkpoint
    shutil.copy(own, file)
    section = "generator.autoencoder.train"
    start = f"{section}.init_from={file}"
    longer = (f"{section}.decoder_only=true", f"{section}.adversarial_start=0", f"{section}.lr=0.01")
    unsafe = tool("train_autoencoder", copy, f"{section}.init_from={own}", *longer, "--overwrite")
    assert "copy the file to another place" in complaint(unsafe)
    assert "name its file in init_from" in complaint(tool("train_autoencoder", copy, *longer, "--overwrite"))
    first = Pipeline.from_pretrained(tmp_path / "run").generate(range(2))
    train("autoencoder", copy, start, *longer, mode=Mode.OVERWRITE)
    before, after = (checkpoint.load(path).tensors for path in (file, own))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    second = Pipeline.from_pretrained(tmp_path / "run").generate(range(2))  # with the DiT that was trained before
    assert torch.equal(second.z, first.z)
    assert not torch.equal(second.images, first.images)
    train("generator", copy, start, *longer, mode=Mode.RESUME)


def refused(name, *arguments):
    return complaint(tool(name, *arguments))


def test_a_generator_refuses_another_autoencoder_of_the_same_shape(copy, tmp_path):
    train("autoencoder", copy, "seed=7", mode=Mode.OVERWRITE)
    assert "generates latents of kl:" in refused("sample", tmp_path / "run", "--out", tmp_path / "out")
    sentence = refused("train_pixel", copy, "--resume")
    assert "train it again with --overwrite" in sentence


def test_mistakes_are_named(copy, tmp_path):
    assert "generator.autoencoder.width: 32 -> 64" in refused("train_pixel", copy, "generator.autoencoder.width=64")
    assert "multiple of 32" in refused("train_autoencoder", copy, "generator.autoencoder.width=40")
    assert "go on with --resume" in refused("train_autoencoder", copy)
    sentence = refused("train_autoencoder", copy, "generator.autoencoder.train.perceptual_weight=2", "--resume")
    assert "generator.autoencoder.train.perceptual_weight" in sentence
    shutil.rmtree(tmp_path / "run" / "autoencoder")
    assert "run tools/train_autoencoder.py with the same configuration first" in refused(
        "train_pixel", copy, "--resume"
    )
    assert "run tools/train_autoencoder.py" in refused("sample", tmp_path / "run", "--out", tmp_path / "out")
    sentence = refused("train_autoencoder", copy, "generator.autoencoder={name: pixels}")
    assert "'pixels', which has nothing to train" in sentence
    assert "nearest that fits is 16" in refused("train_autoencoder", copy, "data.image_size=17")
    sentence = refused("train_autoencoder", copy, "encoder={name: moco_v3}")
    assert "set generator.autoencoder.train.perceptual to vgg or none" in sentence


def test_a_missing_file_of_weights_is_named(tmp_path):
    path = toy(tmp_path, generator__autoencoder__weights=str(tmp_path / "none.safetensors"))
    assert "there is no weight file" in refused("train_pixel", path)


def test_latents_are_computed_once_and_training_says_so(copy, tmp_path, monkeypatch):
    filled = tool("cache", copy)
    assert filled.returncode == 0, filled.stderr
    assert "71 training images in 1 view(s), latents 4x8x8" in filled.stdout
    experiment, run = load_experiment(copy), RunFolder(tmp_path / "run")
    autoencoder = open_autoencoder(experiment.generator.autoencoder, 16, run.autoencoder.checkpoint)
    (folder,) = run.cache.glob("train-latents-*")
    (shard,) = folder.iterdir()
    tensors, facts = checkpoint.load_tensors(shard)
    assert facts["autoencoder"] == autoencoder.space.id
    assert tensors["rows"].shape == (71, 1, 8, 8, 8)  # means and stds of four channels
    assert tensors["rows"].dtype == torch.float16
    reads, item = [], ConditionedImages.__getitem__

    def read(self, key):
        sample = item(self, key)
        reads.append(set(sample))
        return sample

    monkeypatch.setattr(ConditionedImages, "__getitem__", read)
    done = tool("train_pixel", copy, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert f"latents of train images: 71 images in 1 view(s) from {folder}" in done.stdout
    assert reads[:48] == [{"latent", "label", "z"}] * 48
    assert reads[-1] == {"image", "label", "z"}, "evaluations look at images"
    shard.unlink()
    reads.clear()
    assert "latents of" not in tool("train_pixel", copy, "--overwrite").stdout
    assert set(map(frozenset, reads)) == {frozenset({"image", "label", "z"})}, "an incomplete cache is not used"


def test_before_there_is_an_autoencoder_only_representations_are_cached(tmp_path):
    done = tool("cache", toy(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "latents are not cached yet: " in done.stdout
    assert [folder.name.split("-")[0] for folder in sorted((tmp_path / "run" / "cache").iterdir())] == [
        "train",
        "validation",
    ]


def test_a_resolved_experiment_reads_again_as_it_was_written(tmp_path):
    path = toy(tmp_path, TOKENIZER)
    experiment = load_experiment(path)
    (tmp_path / "again.yaml").write_text(experiment.to_yaml())
    assert load_experiment(tmp_path / "again.yaml") == experiment
    assert isinstance(yaml.safe_load(experiment.to_yaml())["generator"]["autoencoder"]["quantizer"], dict)


def test_help_lists_the_keys_of_autoencoders():
    done = tool("train_autoencoder", "--help")
    assert done.returncode == 0
    for words in ("generator.autoencoder.train:", "adversarial_start", "inception", "diffusers, kl, pixels, "):
        assert words in done.stdout
