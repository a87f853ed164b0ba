"""ADM and LDM beyond the published networks."""

import pytest
import torch
from pydantic import ValidationError

from rcg.config import AutoencoderConfig
from rcg.core.contracts import Interface, Space
from rcg.core.errors import UserError
from rcg.core.registry import AUTOENCODERS
from rcg.diffusion.unet import LayerCondition, Residual
from rcg.generators.adm import ADM, ADMConfig
from rcg.generators.ldm import LDM, LDMConfig

PIXELS, REP, LABELS = Space((3, 16, 16)), Space((6,)), Space((), vocab=4)
SMALL = {"width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (8,), "head_width": 8}


def awake(network):
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return network


def test_a_style_only_scales_what_the_time_has_modulated():
    block = awake(Residual(8, 8, 2, 4, scale_shift=True, style=6))
    x, time, z = torch.randn(2, 8, 4, 4), torch.randn(2, 4), torch.randn(2, 6)
    with torch.no_grad():  # the residual branch before its last activation, AdaGN as in Diffusion Autoencoders
        scale, shift = block.time(time)[..., None, None].chunk(2, dim=1)
        h = block.norm_out(block.conv_in(torch.nn.functional.silu(block.norm_in(x)))) * (1 + scale) + shift
        h = h * (1 + block.style(z)[..., None, None])
        expected = x + block.conv_out(torch.nn.functional.silu(h))
        torch.testing.assert_close(block(x, LayerCondition(time, z)), expected)


@pytest.mark.parametrize("cond", [REP, LABELS])
def test_every_residual_block_gets_the_style(cond):
    network = ADM(ADMConfig(condition_path="style", **SMALL), Interface(PIXELS, cond))
    blocks = [module for module in network.modules() if isinstance(module, Residual)]
    assert len(blocks) == 2 + 1 + 2 + 4 + 1  # down, its resampling, bottleneck, up, its resampling
    assert {block.style.in_features for block in blocks} == {6 if cond is REP else 64}


def test_the_width_of_the_time_embedding_can_be_chosen():
    network = ADM(ADMConfig(embedding_width=20, **SMALL), Interface(PIXELS))
    blocks = [module for module in network.modules() if isinstance(module, Residual)]
    assert {block.time.in_features for block in blocks} == {20}
    assert network(torch.randn(1, 3, 16, 16), torch.tensor([3])).shape == (1, 1, 3, 16, 16)


def test_a_new_network_ignores_the_representation():
    network = awake(ADM(ADMConfig(**SMALL), Interface(PIXELS, REP)))
    fresh = ADM(ADMConfig(**SMALL), Interface(PIXELS, REP))
    network.cond.load_state_dict(fresh.cond.state_dict())
    x, t, rep = torch.randn(2, 3, 16, 16), torch.tensor([3, 900]), torch.randn(2, 6)
    assert torch.equal(network(x, t, rep), network(x, t, -rep))


@pytest.mark.parametrize(("network", "config"), [(ADM, ADMConfig), (LDM, LDMConfig)])
def test_the_bottleneck_can_be_edited_by_a_hook(network, config):
    n = awake(network(config(**SMALL), Interface(PIXELS, REP))).eval()
    x, t, rep = torch.randn(2, 3, 16, 16), torch.tensor([3, 900]), torch.randn(2, 6)
    plain, seen = n(x, t, rep), []
    handle = n.bottleneck().register_forward_hook(lambda module, args, output: seen.append(output) or output + 1)
    edited = n(x, t, rep)
    handle.remove()
    assert seen[0].shape == (2, 32, 8, 8)
    assert not torch.allclose(edited, plain)
    assert torch.equal(n(x, t, rep), plain)


def test_several_context_tokens_are_made_from_one_representation():
    n = LDM(LDMConfig(context_tokens=3, **SMALL), Interface(PIXELS, REP))
    assert n.cond(torch.randn(2, 6)).shape == (2, 3, 6)
    single = LDM(LDMConfig(**SMALL), Interface(PIXELS, REP))
    rep = torch.randn(2, 6)
    assert torch.equal(single.cond(rep)[:, 0], rep)
    labels = LDM(LDMConfig(**SMALL), Interface(PIXELS, LABELS))
    assert labels.cond(torch.tensor([0, 4])).shape == (2, 1, 512)


def test_dropout_acts_in_training_alone():
    n = awake(ADM(ADMConfig(dropout=0.5, **SMALL), Interface(PIXELS)))
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([3])
    assert not torch.equal(n(x, t), n(x, t))
    n.eval()
    assert torch.equal(n(x, t), n(x, t))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="has 3 levels, but a side of 10 cannot be halved that often"):
        LDM(LDMConfig(), Interface(Space((3, 10, 10))))
    with pytest.raises(UserError, match="head_width is 10, which does not divide 32 channels"):
        ADM(ADMConfig(**SMALL | {"head_width": 10}), Interface(PIXELS))
    with pytest.raises(UserError, match="groups is 5, which does not divide the width 16"):
        ADM(ADMConfig(**SMALL | {"groups": 5}), Interface(PIXELS))


@pytest.mark.parametrize(("width", "groups"), [(16, 4), (32, 8), (24, 6), (128, 32), (256, 32), (18, 2), (2, 1)])
def test_four_channels_share_a_group_and_32_groups_are_the_most(width, groups):
    assert ADMConfig(width=width).groups == groups
    assert ADMConfig(width=width, groups=1).groups == 1


@pytest.mark.parametrize("network", [ADM, LDM])
def test_every_norm_has_the_configured_groups(network):
    built = network(network.Config(**SMALL | {"groups": 8}), Interface(PIXELS, REP))
    assert {norm.num_groups for norm in built.modules() if isinstance(norm, torch.nn.GroupNorm)} == {8}


def test_the_published_sizes_have_their_number_of_parameters():
    with torch.device("meta"):
        adm = ADM(ADMConfig(width=256), Interface(Space((3, 256, 256)), Space((256,)), outputs=2))
        ldm = LDM(LDMConfig(width=256), Interface(Space((4, 32, 32)), Space((256,))))
    assert sum(p.numel() for p in adm.parameters()) == pytest.approx(553.1e6, rel=1e-3)
    assert sum(p.numel() for p in ldm.parameters()) == pytest.approx(389.9e6, rel=1e-3)


def test_latents_are_not_clipped(monkeypatch):
    class Config(AutoencoderConfig):
        name: str = "latents"

    monkeypatch.setitem(AUTOENCODERS._classes, "latents", type("Latents", (), {"Config": Config}))
    assert ADMConfig().sampler.clip
    assert ADMConfig(autoencoder="latents", sampler={"clip": False}).sampler.name == "ddpm"
    with pytest.raises(ValidationError, match="latents leave: set sampler"):
        ADMConfig(autoencoder="latents")
