"""Forward passes, losses and sampling loops of the published generators, through their converters."""

import pytest
import torch

from rcg.config import GuidanceConfig
from rcg.core.contracts import Space
from rcg.core.registry import GENERATORS, SAMPLERS
from rcg.diffusion.guidance import Guided
from rcg.diffusion.model import build
from rcg.diffusion.processes._affine import Draws
from rcg.generators.published import adm, dit, ldm
from tests.ideal import RecordedNoise
from tests.parity import recorded, state

LEARNED = {"name": "gaussian", "variance": "learned_range"}
DITS, ADMS = ["dit_tiny_rep", "dit_tiny_class"], ["adm_unet_tiny_rep", "adm_unet_tiny_uncond", "adm_unet_tiny_class"]
UNET = {"width": 32, "groups": 32, "head_width": 16}


def model(name):
    """Build a recorded network; return it with its recorded tensors and the condition among them."""
    about, tensors = recorded(name)
    config, weights = about["config"], state(name)
    condition = "class" if "y" in about["inputs"] and "class" in name else "representation"
    if "uncond" in name:
        condition = "none"
    labels = Space((), vocab=config.get("num_classes", 1))
    cond = {"none": None, "class": labels, "representation": Space((12,))}[condition]
    if name.startswith("dit"):
        settings = {"width": 32, "depth": 2, "heads": 4, "gelu": "exact", "process": LEARNED}
        kind, shape, weights = "dit", (4, 8, 8), dit.to_ours(weights, condition)
    elif name.startswith("adm"):
        settings = {"multipliers": (1, 2), "blocks": 1, "attention": (8,)} | UNET
        kind, shape = "adm", (3, 16, 16)
        weights = {
            f"network.{key}": value for key, value in adm.to_ours(weights, adm.Layout(16, head_width=16)).items()
        }
    else:
        settings = {"multipliers": (1, 2), "blocks": 1, "attention": (8, 4)} | UNET
        kind, shape = "ldm", (4, 8, 8)
        weights = {f"network.{key}": value for key, value in ldm.to_ours(weights).items()}
    network = GENERATORS.get(kind)
    built = build(network.Config(condition=condition, **settings), network, Space(shape), cond)
    if built.null is not None:
        weights.setdefault("null", torch.zeros(1, 12))
    built.load_state_dict(weights)
    value = {"none": None, "class": tensors.get("in/y"), "representation": tensors.get("in/rep")}[condition]
    return built.eval().requires_grad_(False), tensors, value


@pytest.mark.parametrize("name", [*DITS, *ADMS, "ldm_unet_tiny_rep"])
def test_forward_equals_the_published_one(name):
    m, tensors, cond = model(name)
    output = m.network(tensors["in/x"], tensors["in/t"], cond).flatten(1, 2)
    expected = tensors["out/eps" if name.startswith("ldm") else "out/eps_sigma"]
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*DITS, "adm_unet_tiny_rep"])
def test_losses_equal_the_published_ones_sample_by_sample(name, monkeypatch):
    m, tensors, cond = model(name)
    for i in range(len(tensors["in/x"])):
        one = slice(i, i + 1)
        monkeypatch.setattr(m.process, "draw", lambda x, one=one: Draws(tensors["in/t"][one], tensors["in/noise"][one]))
        losses = m.process.loss(m.network, tensors["in/x"][one], cond[one])
        torch.testing.assert_close(losses["mse"], tensors["out/mse"][i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(losses["vb"], tensors["out/vb"][i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(sum(losses.values()), tensors["out/loss"][i], atol=1e-5, rtol=1e-5)


def close(x, expected):
    """Compare samples; with random weights their values are large."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(x, expected, atol=1e-5 * scale, rtol=1e-4)


def sample(m, start, draws, cond, name, **settings):
    sampler = SAMPLERS.get(name)(**settings)
    return sampler(m.process, m.network, m.data, cond, RecordedNoise([start, *draws]))


@pytest.mark.parametrize("name", [*DITS, "adm_unet_tiny_rep"])
def test_ancestral_sampling_equals_the_published_loop(name):
    m, tensors, cond = model(name)
    clip = name.startswith("adm")
    draws = tensors["aux/p_sample_step_noise"]
    x = sample(m, tensors["in/x"], draws, cond, "ddpm", steps=5, spacing="linspace", clip=clip)
    close(x, tensors["out/p_sample_loop_5" + "_clip" * clip])


@pytest.mark.parametrize("name", [*DITS, "adm_unet_tiny_rep"])
def test_ddim_equals_the_published_loop(name):
    m, tensors, cond = model(name)
    clip = name.startswith("adm")
    x = sample(m, tensors["in/x"], [], cond, "ddim", steps=5, spacing="leading", clip=clip)
    close(x, tensors["out/ddim_sample_loop_ddim5" + "_clip" * clip])


def test_ldm_samples_and_learns_as_published(monkeypatch):
    m, _, _ = model("ldm_unet_tiny_rep")
    _, tensors = recorded("ldm_ddim_tiny")
    x = sample(
        m, tensors["in/x_T"], tensors["aux/step_noise"], tensors["in/rep"], "ddim", steps=4, eta=1, spacing="rcg"
    )
    close(x, tensors["out/sample"])
    monkeypatch.setattr(m.process, "draw", lambda x: Draws(tensors["in/t"], tensors["in/noise"]))
    loss = m.process.loss(m.network, tensors["in/x_start"], tensors["in/rep"])["mse"]
    torch.testing.assert_close(loss, tensors["out/loss"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["5", "250", "ddim5", "ddim25"])
def test_respaced_levels_are_the_published_ones(name):
    m, tensors, _ = model("dit_tiny_rep")
    spacing = "leading" if name.startswith("ddim") else "linspace"
    levels = m.process.levels(int(name.removeprefix("ddim")), spacing)
    assert [level.t for level in reversed(levels[:-1])] == tensors[f"out/timestep_map_{name}"].tolist()


def test_guidance_of_three_channels_equals_the_published_one():
    m, tensors, rep = model("dit_tiny_rep")
    # The published function takes conditional and unconditional samples as the two halves of one batch.
    half = len(rep) // 2
    x, t, rep = tensors["in/x"][:half], tensors["in/t"][:half], rep[:half]
    guided = Guided(m.network, m.null_like(rep), GuidanceConfig(scale=2.5, channels=3), horizon=1000)
    expected = tensors["out/with_cfg_2.5"][:half]
    torch.testing.assert_close(guided(x, t, rep).flatten(1, 2), expected, atol=1e-5, rtol=1e-5)
