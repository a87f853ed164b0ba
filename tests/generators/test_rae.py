"""The representation autoencoder: its latents, its encoder, and its place in a run."""

import shutil

import pytest
import torch

from rcg.config import load_experiment
from rcg.core import checkpoint
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import AUTOENCODERS, PROCESSES
from rcg.data.datasets.digits import DigitsConfig
from rcg.data.images import load_images
from rcg.diffusion.model import build as build_model
from rcg.encoding.autoencoder import build_autoencoder
from rcg.encoding.encoder import load_encoder
from rcg.encoding.run_folder import Mode, RunFolder
from rcg.generators.dit import DiT
from rcg.pipeline import Pipeline
from rcg.training.tasks.autoencoder import measure_latents
from tests.small import AUTOENCODER, ENCODER
from tests.toy import ROOT, train, write

TRAIN = {"steps": 6, "batch_size": 8, "adversarial_start": 2, "discriminator_width": 8, "decoder_noise": 0.5}
RAE = {"name": "rae", "width": 16, "depth": 1, "heads": 2, "train": TRAIN | {"precision": "no", "tracker": "none"}}
RANDOM = {"encoder__weights": "none", "encoder__input_size": 16}
GENERATOR = {"generator__patch": 1, "generator__process": {"name": "flow", "shift": "dimension"}}


def toy(folder, **changes):
    folder.mkdir(exist_ok=True)
    return write(folder, generator__autoencoder=RAE, **GENERATOR, **changes)


def build(image_size=16, **changes):
    torch.manual_seed(0)
    rae = AUTOENCODERS.get("rae")
    return rae(rae.Config(**AUTOENCODER["rae"] | changes), image_size)


def test_latents_are_the_encoders_patches_with_each_channel_standardized():
    rae, images = build(), load_images(DigitsConfig(image_size=16, limit=100)).train
    image = torch.stack([images[i]["image"] for i in range(len(images))])
    features = rae.encoder.patch_features(image)  # (B, 4, 32), row by row
    mean, std = measure_latents(rae, images)
    assert mean.shape == std.shape == (rae.channels, 1, 1)
    torch.testing.assert_close(mean.flatten(), features.mean((0, 1)))
    rae.standardize.load_state_dict({"mean": mean, "std": std})
    latent = rae.encode(image)
    expected = (features - features.mean((0, 1))) / std.flatten()
    torch.testing.assert_close(latent[:, :, 1, 0], expected[:, 2], atol=1e-4, rtol=1e-3)
    moving = features.std((0, 1)) > 1e-6
    torch.testing.assert_close(latent.std((0, 2, 3))[moving], torch.ones(int(moving.sum())), atol=1e-3, rtol=1e-3)


def test_a_feature_that_never_changes_does_not_become_infinite():
    rae, images = build(), load_images(DigitsConfig(image_size=16, limit=20)).train
    patch_features = rae.encoder.patch_features
    rae.encoder.patch_features = lambda image: patch_features(image) * torch.cat([torch.zeros(1), torch.ones(31)])
    mean, std = measure_latents(rae, images)
    assert (mean[0], std[0]) == (0, 1)


def test_patches_of_the_decoder_lie_where_those_of_the_encoder_do():
    rae = build(width=32)
    latent = torch.randn(1, rae.channels, 2, 2)
    other = latent.clone()
    other[:, :, 0, 1] += 1
    for block in rae.decoder.blocks:  # without attention, a position decides its own patch alone
        block.attn.proj.weight.data.zero_()
    changed = (rae.decoder(latent) != rae.decoder(other)).any(1)[0]
    assert changed[:8, 8:].float().mean() > 0.9
    assert not changed[8:].any()
    assert not changed[:, :8].any()


def test_a_run_of_it_samples_resumes_and_travels_with_its_encoder(toy_run, tmp_path):
    run = tmp_path / "a" / "run"
    path = toy(tmp_path / "a")
    shutil.copytree(toy_run / "run" / "encoder", run / "encoder")
    whole = train("autoencoder", path)
    encoder = load_encoder(RunFolder(run).encoder.checkpoint).state_dict()
    part = whole.part()
    own = {name.removeprefix("encoder."): x for name, x in part.tensors.items() if name.startswith("encoder.")}
    assert all(torch.equal(value, encoder[name]) for name, value in own.items())
    assert not [name for name in own if name.startswith("head.")], "patch features need no projector"

    # Three steps, and three more.
    other = toy(tmp_path / "b")
    shutil.copytree(toy_run / "run" / "encoder", tmp_path / "b" / "run" / "encoder")
    train("autoencoder", other, "generator.autoencoder.train.steps=3")
    resumed = train("autoencoder", other, mode=Mode.RESUME).part()
    assert all(torch.equal(value, resumed.tensors[name]) for name, value in part.tensors.items())

    # The noise of the decoder acts in the run.
    silent = train("autoencoder", other, "generator.autoencoder.train.decoder_noise=0", mode=Mode.OVERWRITE).part()
    assert not torch.equal(silent.tensors["decoder.output.weight"], part.tensors["decoder.output.weight"])

    # Without the encoder of the run, whose weights the autoencoder has taken over.
    for stage in ("rdm", "generator"):
        train(stage, path)
    pipeline = Pipeline.from_pretrained(run)
    images = pipeline.generate(range(2)).images
    assert images.shape == (2, 3, 16, 16)
    pipeline.save_pretrained(tmp_path / "saved")
    assert torch.equal(Pipeline.from_pretrained(tmp_path / "saved").generate(range(2)).images, images)


def test_its_encoder_is_that_of_the_experiment_unless_it_names_another(tmp_path):
    own = {**AUTOENCODER["rae"]["encoder"], "width": 8}
    experiment = load_experiment(toy(tmp_path, **RANDOM))
    assert experiment.generator.autoencoder.encoder == experiment.encoder
    other = load_experiment(toy(tmp_path), [f"generator.autoencoder.encoder={own}"])
    assert other.generator.autoencoder.encoder.width == 8
    stage = train("autoencoder", toy(tmp_path, **RANDOM), f"generator.autoencoder.encoder={own}")
    assert stage.part().facts.step == 6
    assert checkpoint.load(stage.checkpoint).config["encoder"]["width"] == 8


def test_what_it_cannot_do_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"2 x 2 patches.*divides data\.image_size=15"):
        build(image_size=15)
    with pytest.raises(UserError, match="semantic has no patches of features"):
        build(encoder={"name": "semantic", **ENCODER["semantic"]})
    with pytest.raises(UserError, match="multiple of 4 and of heads 3"):
        build(heads=3)
    with pytest.raises(UserError, match="a rae without an encoder"):
        build(encoder=None)
    for key, value in {"align": {}, "decoder_only": True}.items():
        train_section = {key: value, "init_from": "a.safetensors"}
        with pytest.raises(ValueError, match=rf"train\.{key} is of no use to a rae"):
            AUTOENCODERS.get("rae").Config(train=train_section)
    own = {key: value for key, value in AUTOENCODER["rae"]["encoder"].items() if key != "weights"}
    with pytest.raises(UserError, match="another encoder than the experiment's and names no weights"):
        train("autoencoder", toy(tmp_path, **RANDOM), f"generator.autoencoder.encoder={own}")
    assert not (tmp_path / "run").exists()


def test_the_published_sizes_fit_together():
    experiment = load_experiment(ROOT / "configs" / "imagenet256_rae.yaml")
    config = experiment.generator
    with torch.device("meta"):
        rae = build_autoencoder(config.autoencoder, 256)
        data = Space((rae.channels, rae.side, rae.side))
        model = build_model(config, DiT, data, Space((768,)))
        assert rae.decoder(torch.zeros(2, *data.shape)).shape == (2, 3, 256, 256)
    assert data.shape == (768, 16, 16)
    assert model.process.shift == pytest.approx(48**0.5)


def test_the_shift_of_times_follows_the_dimension_of_the_data():
    flow = PROCESSES.get("flow")
    config = flow.Config(shift="dimension")
    data = Space((768, 16, 16))
    assert config.for_data(data).shift == pytest.approx(48**0.5)
    assert config.for_data(Space((16, 16, 16))).shift == 1
    levels = flow(config.for_data(data)).levels(2, "trailing")
    s = 48**0.5
    assert levels[1].sigma == pytest.approx(s * 0.5 / (1 + (s - 1) * 0.5))
    assert flow.Config(shift=3.0).for_data(data).shift == 3
