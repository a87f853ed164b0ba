"""The convolutional autoencoders against recorded outputs of the published networks, lists of keys, and diffusers."""

import pytest
import torch

from rcg.core import checkpoint, pretrained
from rcg.core.checkpoint import Facts, Part
from rcg.core.errors import UserError
from rcg.core.registry import AUTOENCODERS, CONVERTERS
from rcg.encoding.autoencoder import autoencoder_part, build_autoencoder, open_autoencoder, restore_autoencoder
from rcg.encoding.run_folder import RunFolder
from rcg.generators._taming import architecture, from_published, to_published
from tests.generators.originals import convert, listed_tensors
from tests.parity import recorded, state
from tests.toy import tool


def converted(tensors, folder, size):
    """Write `tensors` as a published file, convert it by the tool, and restore the part for images of `size`."""
    torch.save({"state_dict": tensors}, folder / "published.ckpt")
    convert("autoencoder", folder / "published.ckpt", folder / "run")
    part = RunFolder(folder / "run").autoencoder.part()
    facts = part.facts.model_copy(update={"image_size": size})
    return restore_autoencoder(Part(part.kind, part.config, facts, part.tensors))


@torch.no_grad()
def test_mages_tokenizer_equals_the_published_one(tmp_path):
    about, tensors = recorded("mage_vqgan_tiny")
    tokenizer = converted({f"vqgan.{k}": v for k, v in state("mage_vqgan_tiny").items()}, tmp_path, 256)
    image, indices = tensors["in/image01"], tensors["out/indices"].view(1, 16, 16)
    torch.testing.assert_close(tokenizer.analyze(image), tensors["out/encoder_out"], atol=1e-5, rtol=1e-5)
    assert torch.equal(tokenizer.encode(image), indices)
    stride, expected = about["flat_stride_in_min"]["out/decoded_from_indices"], tensors["out/decoded_from_indices"]
    tokenizer.double()  # rounding alone makes 3e-5 of a single-precision decoder at this size
    reconstructed = tokenizer.synthesize(tokenizer.quantize.lookup(indices).movedim(-1, 1)).flatten()[::stride].float()
    torch.testing.assert_close(reconstructed, expected, atol=1e-5, rtol=1e-5)
    decoded = tokenizer.decode(indices).flatten()[::stride].float()
    torch.testing.assert_close(decoded, expected.clamp(0, 1), atol=1e-5, rtol=1e-5)
    assert tokenizer.space.shape == (16, 16)
    assert tokenizer.space.vocab == 48


@torch.no_grad()
def test_the_vq_of_latent_diffusion_equals_the_published_one(tmp_path):
    _, tensors = recorded("ldm_vq_tiny")
    image = (tensors["in/image"] + 1) / 2
    found = {f"first_stage_model.{key}": value for key, value in state("ldm_vq_tiny").items()}
    vq = converted({**found, "model.other": torch.zeros(1)}, tmp_path, 32)
    latent = vq.encode(image)
    torch.testing.assert_close(latent, tensors["out/z_prequant"], atol=1e-5, rtol=1e-5)
    assert torch.equal(vq.codes(latent).flatten(), tensors["out/indices"])
    torch.testing.assert_close(vq.decode(latent), ((tensors["out/decoded"] + 1) / 2).clamp(0, 1), atol=1e-5, rtol=1e-5)
    assert vq.space.shape == (4, 8, 8)
    assert vq.space.vocab is None


def oracle():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = 2
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks,
        block_out_channels=[32, 64],
        scaling_factor=0.5,
        shift_factor=0.25,
    ).eval()


@torch.no_grad()
def test_the_kl_autoencoder_equals_that_of_diffusers_in_both_layouts(tmp_path):
    network, image = oracle(), torch.rand(2, 3, 16, 16)
    expected = network.encode(image * 2 - 1).latent_dist
    for number, tensors in enumerate((network.state_dict(), to_published(from_published(network.state_dict())))):
        (tmp_path / str(number)).mkdir()
        kl = converted(tensors, tmp_path / str(number), 16)
        mean, std = kl.posterior(image).chunk(2, dim=1)
        torch.testing.assert_close(mean / 0.18215, expected.mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(std / 0.18215, expected.std, atol=1e-5, rtol=1e-5)
        decoded = (network.decode(expected.mean).sample + 1) / 2
        torch.testing.assert_close(kl.decode(mean), decoded.clamp(0, 1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_autoencoder_of_diffusers_is_used_with_its_own_scale(tmp_path):
    network = oracle()
    network.save_pretrained(tmp_path / "vae")
    schema = AUTOENCODERS.get("diffusers").Config
    autoencoder = open_autoencoder(schema(weights=str(tmp_path / "vae")), 16, None)
    image = torch.rand(2, 3, 16, 16)
    mean, std = autoencoder.posterior(image).chunk(2, dim=1)
    expected = network.encode(image * 2 - 1).latent_dist
    torch.testing.assert_close(mean, (expected.mean - 0.25) * 0.5)
    torch.testing.assert_close(std, expected.std * 0.5)
    decoded = (network.decode(expected.mean).sample + 1) / 2
    torch.testing.assert_close(autoencoder.decode(mean), decoded.clamp(0, 1), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="image_size is 15"):
        open_autoencoder(schema(weights=str(tmp_path / "vae")), 15, None)
    with pytest.raises(UserError, match="neither a folder nor a repository"):
        open_autoencoder(schema(weights=str(tmp_path / "none")), 16, None)


def test_without_diffusers_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    build = AUTOENCODERS.get("diffusers")
    with pytest.raises(UserError, match=r"pip install 'rcg\[diffusers\]'"):
        build(build.Config(), 16)


@pytest.mark.parametrize(("kind", "name"), [("vqgan", "mage_vqgan_tiny"), ("vq", "ldm_vq_tiny")])
def test_there_and_back_gives_every_tensor(kind, name, tmp_path):
    before = state(name)
    assert converted(before, tmp_path, 32).config.name == kind
    convert("autoencoder", tmp_path / "run", tmp_path / "back.ckpt", "--back")
    after = pretrained.read(tmp_path / "back.ckpt")["state_dict"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_file_of_tamings_vqgan_becomes_a_tokenizer_if_named(tmp_path):
    torch.save(state("ldm_vq_tiny"), tmp_path / "taming.ckpt")
    run = RunFolder(tmp_path / "run")
    convert("autoencoder", tmp_path / "taming.ckpt", run.path, "--name", "vqgan")
    config = run.autoencoder.part().config
    assert (config["name"], config["lineage"]) == ("vqgan", "taming")
    convert("autoencoder", run.path, tmp_path / "back.ckpt", "--back", "--name", "vqgan")
    refused = tool("convert", "autoencoder", run.path, tmp_path / "other.ckpt", "--back", "--name", "vq")
    assert refused.returncode == 2
    assert "holds no vq autoencoder" in refused.stderr


def test_an_autoencoder_with_other_groups_than_the_original_code_is_not_written(tmp_path):
    narrow = build_autoencoder(AUTOENCODERS.get("vqgan").Config(width=32, multipliers=(1, 1), channels=4), 16)
    run = RunFolder(tmp_path)
    checkpoint.save(run.autoencoder.checkpoint, autoencoder_part(narrow, Facts(image_size=16)))
    with pytest.raises(UserError, match="normalizes 8 groups of channels, but the original code always 32"):
        CONVERTERS.get("autoencoder")().write(run, tmp_path / "back.ckpt")
    assert not (tmp_path / "back.ckpt").exists()


@pytest.mark.parametrize(("kind", "name"), [("vqgan", "mage_vqgan"), ("vq", "ldm_vq_f8")])
def test_the_defaults_are_the_published_sizes(kind, name):
    listed = listed_tensors(name)
    build = AUTOENCODERS.get(kind)
    with torch.device("meta"):
        autoencoder = build(build.Config(), 256)
        pretrained.fit(autoencoder, autoencoder.rename(listed), name)
        sizes = architecture(from_published(listed))
    resolved = build.Config().resolve(256).model_dump(mode="json")
    assert all(resolved[key] == value for key, value in sizes.items())


def test_the_default_kl_autoencoder_has_the_published_number_of_parameters():
    with torch.device("meta"):
        kl = AUTOENCODERS.get("kl")
        network = kl(kl.Config(), 256)
    assert sum(p.numel() for p in network.parameters()) == 83_653_863  # as diffusers counts sd-vae-ft-ema


def test_other_files_are_refused(tmp_path):
    torch.save(state("ldm_vq_tiny"), tmp_path / "vq.ckpt")
    for name, error in (("kl", "is not a kl autoencoder"), ("vqgna", "did you mean 'vqgan'")):
        refused = tool("convert", "autoencoder", tmp_path / "vq.ckpt", tmp_path / "run", "--name", name)
        assert refused.returncode == 2
        assert error in refused.stderr
    assert not (tmp_path / "run").exists()
    build = AUTOENCODERS.get("vqgan")
    with pytest.raises(UserError, match=r"does not fit VQGAN: it lacks encoder\.down"):
        open_autoencoder(build.Config(groups=32, weights=str(tmp_path / "vq.ckpt")), 32, None)
