"""The contract of every registered autoencoder."""

import math

import pytest
import torch

from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Reconstruction, TrainableAutoencoder
from rcg.core.errors import UserError
from rcg.core.registry import AUTOENCODERS
from rcg.encoding.autoencoder import autoencoder_part, build_autoencoder, restore_autoencoder
from rcg.encoding.cache import pack, unpack
from rcg.generators.autoencoders._latents import draw_latents, noised
from tests.small import AUTOENCODER


@pytest.fixture(params=AUTOENCODERS.names())
def autoencoder(request):
    torch.manual_seed(0)
    schema = AUTOENCODERS.get(request.param).Config
    return build_autoencoder(schema(**AUTOENCODER.get(request.param, {})), 16).freeze()


def test_it_maps_images_into_its_space_and_back(autoencoder):
    image = torch.rand(3, 3, 16, 16)
    latent = autoencoder.encode(image)
    assert latent.shape == (3, *autoencoder.space.shape)
    if autoencoder.space.vocab is not None:
        assert latent.dtype == torch.int64
        assert 0 <= latent.min() <= latent.max() < autoencoder.space.vocab
    decoded = autoencoder.decode(latent)
    assert decoded.shape == image.shape
    assert 0 <= decoded.min() <= decoded.max() <= 1
    torch.testing.assert_close(autoencoder.decode(latent[1:2]), decoded[1:2], atol=1e-5, rtol=1e-4)


def test_its_latents_are_drawn_from_a_cached_posterior(autoencoder):
    if not autoencoder.has_weights:
        pytest.skip("there is nothing to cache")
    image = torch.rand(3, 3, 16, 16)
    posterior = unpack(pack(autoencoder, image))
    torch.manual_seed(1)
    drawn = autoencoder.draw(posterior)
    torch.manual_seed(1)
    torch.testing.assert_close(drawn, autoencoder.encode(image), atol=5e-3, rtol=2e-3)


def test_its_space_names_its_weights_and_survives_a_file(autoencoder):
    if not autoencoder.has_weights:
        pytest.skip("there is nothing to identify")
    part = autoencoder_part(autoencoder, Facts(image_size=16))
    assert restore_autoencoder(part).space == autoencoder.space
    changed = {name: value + 1 if value.is_floating_point() else value for name, value in part.tensors.items()}
    other = restore_autoencoder(Part(part.kind, part.config, part.facts, changed))
    assert other.space.shape == autoencoder.space.shape
    assert other.space.id != autoencoder.space.id


def test_its_decoder_is_no_part_of_its_space(autoencoder):
    if not autoencoder.has_weights:
        pytest.skip("there is nothing to identify")
    part = autoencoder_part(autoencoder, Facts(image_size=16))
    changed = {name: x * 1.5 if name.startswith(autoencoder.decoder_keys) else x for name, x in part.tensors.items()}
    other = restore_autoencoder(Part(part.kind, part.config, part.facts, changed))
    assert other.space == autoencoder.space
    image = torch.rand(2, 3, 16, 16)
    assert torch.equal(other.posterior(image), autoencoder.posterior(image))
    latent = autoencoder.encode(image)
    assert not torch.equal(other.decode(latent), autoencoder.decode(latent))


def test_a_space_whose_decoder_alone_is_trained_does_not_change(autoencoder):
    if not isinstance(autoencoder, TrainableAutoencoder):
        pytest.skip("it is used as it is")
    autoencoder.requires_grad_(True).train_decoder_only()
    before = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    reconstruction = autoencoder.train()(torch.rand(3, 3, 16, 16))
    reconstruction.image.sum().backward()
    for name, p in autoencoder.named_parameters():
        assert (p.grad is not None) == name.startswith(autoencoder.decoder_keys), name
    assert all(torch.equal(before[name], value) for name, value in autoencoder.state_dict().items())


def test_one_that_can_be_trained_reconstructs_with_gradients(autoencoder):
    if not isinstance(autoencoder, TrainableAutoencoder):
        pytest.skip("it is used as it is")
    autoencoder.train().requires_grad_(True)
    reconstruction = autoencoder(torch.rand(3, 3, 16, 16))
    assert isinstance(reconstruction, Reconstruction)
    assert reconstruction.image.shape == (3, 3, 16, 16)
    assert reconstruction.latent.shape[:2] == (3, autoencoder.channels)
    assert (reconstruction.codes is None) == (autoencoder.vocab is None)
    assert (autoencoder.standardize is None) == (autoencoder.space.vocab is not None)
    (reconstruction.image.sum() + sum(reconstruction.losses.values())).backward()
    learning = autoencoder.decoder_keys if autoencoder.trains_decoder_only else ""
    assert all(p.grad is not None for name, p in autoencoder.named_parameters() if name.startswith(learning))


def test_latents_are_drawn_with_the_mean_and_std_of_the_posterior():
    torch.manual_seed(0)
    drawn = draw_latents(torch.cat([torch.full((1, 4, 64, 64), 2.0), torch.full((1, 4, 64, 64), 0.5)], dim=1))
    assert drawn.mean().item() == pytest.approx(2, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("name", ["vqgan", "vq", "kl", "rae"])
def test_decoder_noise_changes_reconstructions_in_training_alone(name):
    schema, settings = AUTOENCODERS.get(name).Config, AUTOENCODER[name]
    image = torch.rand(4, 3, 16, 16)

    def reconstruct(amount, seed=2, training=True):
        torch.manual_seed(1)
        autoencoder = build_autoencoder(schema(**settings, train={"decoder_noise": amount}), 16).train(training)
        torch.manual_seed(seed)
        return autoencoder(image)

    without, disturbed = reconstruct(0.0), reconstruct(2.0)
    assert not torch.equal(without.image, disturbed.image)
    assert torch.equal(without.latent, disturbed.latent), "the encoder sees no noise"
    assert torch.equal(reconstruct(0.0, training=False).image, reconstruct(2.0, training=False).image)


def test_noise_has_the_amount_that_each_image_draws_in_units_of_its_latents():
    torch.manual_seed(0)
    latent = 3 * torch.randn(2000, 4, 8, 8) + 1
    amounts = (noised(latent, 0.5) - latent).std((1, 2, 3)) / latent.std((1, 2, 3))
    # A half normal: its mean is 0.5 sqrt(2 / pi), its mean square 0.25.
    assert amounts.mean().item() == pytest.approx(0.5 * (2 / math.pi) ** 0.5, rel=0.05)
    assert amounts.square().mean().item() == pytest.approx(0.25, rel=0.1)
    assert torch.equal(noised(latent, 0.0), latent)


def test_the_share_of_tokens_replaced_is_that_which_each_image_draws():
    schema = AUTOENCODERS.get("vqgan").Config
    settings = {**AUTOENCODER["vqgan"], "quantizer": {"codes": 512}, "train": {"decoder_noise": 0.3}}
    autoencoder = build_autoencoder(schema(**settings), 16)
    latent = torch.full((1500, 4, 8, 8), 7.0)
    torch.manual_seed(0)
    shares = (autoencoder._disturbed(latent) != 7).any(1).float().mean((1, 2))
    assert shares.mean().item() == pytest.approx(0.3 * (2 / math.pi) ** 0.5, rel=0.05)
    assert shares.max() > 0.7


@pytest.mark.parametrize("name", ["vqgan", "vq", "kl"])
def test_images_and_levels_that_do_not_fit_are_refused(name):
    schema = AUTOENCODERS.get(name).Config
    with pytest.raises(UserError, match=r"data\.image_size is 30.*down-sampling by 4.*nearest that fits is 32"):
        build_autoencoder(schema(**{**AUTOENCODER["kl"], "multipliers": [1, 1, 1]}), 30)
    with pytest.raises(UserError, match=r"attention names the down-sampling factor 3.*1, 2"):
        build_autoencoder(schema(**{**AUTOENCODER["kl"], "attention": [3]}), 16)


@pytest.mark.parametrize(
    ("name", "size", "side", "width", "groups"),
    [
        ("vqgan", 256, 16, 128, 32),
        ("vqgan", 128, 16, 128, 32),
        ("vqgan", 64, 16, 64, 16),
        ("vqgan", 32, 8, 64, 16),
        ("vqgan", 16, 8, 64, 16),
        ("vq", 256, 32, 128, 32),
        ("kl", 256, 32, 128, 32),
        ("kl", 64, 16, 64, 16),
        ("vq", 32, 8, 64, 16),
    ],
)
def test_sizes_that_are_not_given_follow_the_image(name, size, side, width, groups):
    with torch.device("meta"):
        autoencoder = build_autoencoder(AUTOENCODERS.get(name).Config(), size)
    assert (autoencoder.side, autoencoder.encoder.conv_in.out_channels) == (side, width)
    norms = [module for module in autoencoder.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {groups}
    if name == "vqgan":
        assert autoencoder.vocab == {256: 1024, 128: 1024, 64: 1024, 32: 256, 16: 64}[size]
