"""The convolutional autoencoders against the published networks' recorded outputs, key lists, and diffusers."""

import pytest
import torch
from rcg.generators.published._taming import architecture, ours, theirs

from rcg.core import checkpoint
from rcg.core import pretrained as weights
from rcg.core.errors import UserError
from rcg.core.registry import AUTOENCODERS, CONVERTERS
from rcg.encoding.autoencoder import autoencoder_part, build_autoencoder, open_autoencoder, restore_autoencoder
from tests.parity import DATA, recorded, state
from tests.toy import tool


def converted(kind, tensors, folder, size):
    """Write `tensors` as a published file, convert it by the tool, and restore what it wrote."""
    torch.save({"state_dict": tensors}, folder / "theirs.ckpt")
    done = tool("convert", kind, folder / "theirs.ckpt", folder / "run")
    assert done.returncode == 0, done.stderr
    return restore_autoencoder(checkpoint.load(folder / "run" / "autoencoder" / checkpoint.FILE), size)


@torch.no_grad()
def test_mages_tokenizer_equals_the_published_one(tmp_path):
    about, tensors = recorded("mage_vqgan_tiny")
    tokenizer = converted("vqgan", {f"vqgan.{k}": v for k, v in state("mage_vqgan_tiny").items()}, tmp_path, 256)
    image, indices = tensors["in/image01"], tensors["out/indices"].view(1, 16, 16)
    torch.testing.assert_close(tokenizer.analyze(image), tensors["out/encoder_out"], atol=1e-5, rtol=1e-5)
    assert torch.equal(tokenizer.encode(image), indices)
    stride, expected = about["flat_stride_in_min"]["out/decoded_from_indices"], tensors["out/decoded_from_indices"]
    tokenizer.double()  # rounding alone makes 3e-5 of a single-precision decoder at this size
    painted = tokenizer.synthesize(tokenizer.quantize.lookup(indices).movedim(-1, 1)).flatten()[::stride].float()
    torch.testing.assert_close(painted, expected, atol=1e-5, rtol=1e-5)
    decoded = tokenizer.decode(indices).flatten()[::stride].float()
    torch.testing.assert_close(decoded, expected.clamp(0, 1), atol=1e-5, rtol=1e-5)
    assert tokenizer.space.shape == (16, 16)
    assert tokenizer.space.vocab == 48


@torch.no_grad()
def test_the_vq_of_latent_diffusion_equals_the_published_one(tmp_path):
    _, tensors = recorded("ldm_vq_tiny")
    image = (tensors["in/image"] + 1) / 2
    found = {f"first_stage_model.{key}": value for key, value in state("ldm_vq_tiny").items()}
    vq = converted("vq", {**found, "model.other": torch.zeros(1)}, tmp_path, 32)
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
    for number, tensors in enumerate((network.state_dict(), theirs(ours(network.state_dict())))):
        (tmp_path / str(number)).mkdir()
        kl = converted("kl", tensors, tmp_path / str(number), 16)
        mean, std = kl.posterior(image).chunk(2, dim=1)
        torch.testing.assert_close(mean / 0.18215, expected.mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(std / 0.18215, expected.std, atol=1e-5, rtol=1e-5)
        painted = (network.decode(expected.mean).sample + 1) / 2
        torch.testing.assert_close(kl.decode(mean), painted.clamp(0, 1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_autoencoder_of_diffusers_is_used_with_its_own_scale(tmp_path):
    network = oracle()
    network.save_pretrained(tmp_path / "vae")
    build = AUTOENCODERS.get("diffusers")
    mine = open_autoencoder(build.Config(weights=str(tmp_path / "vae")), 16, None)
    image = torch.rand(2, 3, 16, 16)
    mean, std = mine.posterior(image).chunk(2, dim=1)
    expected = network.encode(image * 2 - 1).latent_dist
    torch.testing.assert_close(mean, (expected.mean - 0.25) * 0.5)
    torch.testing.assert_close(std, expected.std * 0.5)
    painted = (network.decode(expected.mean).sample + 1) / 2
    torch.testing.assert_close(mine.decode(mean), painted.clamp(0, 1), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="image_size is 15"):
        open_autoencoder(build.Config(weights=str(tmp_path / "vae")), 15, None)
    with pytest.raises(UserError, match="neither a folder nor a repository"):
        open_autoencoder(build.Config(weights=str(tmp_path / "none")), 16, None)


def test_without_diffusers_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    build = AUTOENCODERS.get("diffusers")
    with pytest.raises(UserError, match=r"pip install 'rcg\[diffusers\]'"):
        build(build.Config(), 16)


@pytest.mark.parametrize(("kind", "name"), [("vqgan", "mage_vqgan_tiny"), ("vq", "ldm_vq_tiny")])
def test_there_and_back_gives_every_tensor(kind, name, tmp_path):
    before = state(name)
    converted(kind, before, tmp_path, 32)
    done = tool("convert", kind, tmp_path / "run", tmp_path / "back.ckpt", "--back")
    assert done.returncode == 0, done.stderr
    after = weights.read(tmp_path / "back.ckpt")["state_dict"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_the_original_code_would_normalize_otherwise_does_not_go_there(tmp_path):
    narrow = build_autoencoder(AUTOENCODERS.get("vqgan").Config(width=32, multipliers=(1, 1), channels=4), 16)
    checkpoint.save(tmp_path / "autoencoder" / checkpoint.FILE, autoencoder_part(narrow, {"image_size": 16}))
    with pytest.raises(UserError, match="normalizes 8 groups of channels, but the original code always 32"):
        CONVERTERS.get("vqgan").write(tmp_path, tmp_path / "back.ckpt")
    assert not (tmp_path / "back.ckpt").exists()


def listed(name):
    """Return the tensors of a published file's list of keys, on the meta device."""
    found = {}
    for line in (DATA / "keys" / f"{name}.txt").read_text().splitlines():
        if not line.startswith("#"):
            key, shape, _ = line.split("\t")
            found[key] = torch.empty([int(n) for n in shape.strip("()").split(",") if n.strip()], device="meta")
    return found


@pytest.mark.parametrize(("kind", "name"), [("vqgan", "mage_vqgan"), ("vq", "ldm_vq_f8")])
def test_the_defaults_are_the_published_sizes(kind, name):
    found = listed(name)
    build = AUTOENCODERS.get(kind)
    with torch.device("meta"):
        autoencoder = build(build.Config(), 256)
        weights.fit(autoencoder, autoencoder.rename(found), name)
        sizes = architecture(ours(found))
    stated = build.Config().stated(256).model_dump(mode="json")
    assert all(stated[key] == value for key, value in sizes.items())


def test_the_default_kl_autoencoder_has_the_published_number_of_parameters():
    with torch.device("meta"):
        kl = AUTOENCODERS.get("kl")
        network = kl(kl.Config(), 256)
    assert sum(p.numel() for p in network.parameters()) == 83_653_863  # as diffusers counts sd-vae-ft-ema


def test_files_that_hold_something_else_are_refused(tmp_path):
    torch.save(state("ldm_vq_tiny"), tmp_path / "vq.ckpt")
    said = tool("convert", "kl", tmp_path / "vq.ckpt", tmp_path / "run")
    assert said.returncode == 2
    assert "is not a kl autoencoder" in said.stderr
    build = AUTOENCODERS.get("vqgan")
    with pytest.raises(UserError, match=r"does not fit VQGAN: it lacks encoder\.down"):
        open_autoencoder(build.Config(groups=32, weights=str(tmp_path / "vq.ckpt")), 32, None)
