"""Inversion finds the noise from which DDIM generates given data: checked against a Gaussian with a known denoiser."""

import pytest
import torch

from rcg.core.registry import PROCESSES, SAMPLERS
from rcg.diffusion.inversion import invert
from tests.ideal import MEAN, SPACE, STD, RecordedNoise, ideal

PROCESS_CONFIGS = {
    "linear-eps": {"name": "gaussian", "schedule": "linear", "predict": "eps"},
    "cosine-x0": {"name": "gaussian", "schedule": "cosine", "predict": "x0"},
    "pure-noise-v": {"name": "gaussian", "schedule": "cosine", "predict": "v", "zero_terminal_snr": True},
    "flow": {"name": "flow", "shift": 2.0},
}


@pytest.fixture(params=PROCESS_CONFIGS)
def process(request):
    config = PROCESS_CONFIGS[request.param]
    component = PROCESSES.get(config["name"])
    return component(component.Config(**config))


@pytest.fixture
def data():
    return MEAN + STD * torch.randn(64, *SPACE.shape, generator=torch.Generator().manual_seed(0))


def round_trip(process, x, steps, **options):
    """Invert, sample again, and return the largest error and the noise."""
    sampler, net = SAMPLERS.get("ddim")(steps=steps), ideal(process)
    noise = invert(process, net, x, None, process.levels(steps, sampler.spacing), **options)
    return float((sampler(process, net, SPACE, None, RecordedNoise([noise])) - x).abs().max()), noise


def exact_noise(process, x):
    """The solution of the probability-flow ODE: quantiles of the marginals correspond."""
    level = process.levels(10, "trailing")[0]
    std = (level.alpha**2 * STD**2 + level.sigma**2) ** 0.5
    return level.alpha * MEAN + std * (x - MEAN) / STD


def test_sampling_undoes_the_inversion(process, data):
    error, _ = round_trip(process, data, steps=100)
    assert error < 1e-4


def test_each_iteration_reduces_the_error(process, data):
    errors = [round_trip(process, data, steps=50, iterations=n)[0] for n in (0, 1, 2, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 100


@pytest.mark.parametrize("iterations", [0, 4])
def test_the_noise_approaches_that_of_the_ode_with_the_step(process, data, iterations):
    exact = exact_noise(process, data)
    coarse, fine = (
        float((round_trip(process, data, steps, iterations=iterations)[1] - exact).abs().max()) for steps in (50, 200)
    )
    assert fine < coarse / 2.5  # first order: a quarter


def test_the_spacing_of_the_rdm_ends_at_its_first_level(data):
    component = PROCESSES.get("gaussian")
    process = component(component.Config())
    net, sampler = ideal(process), SAMPLERS.get("ddim")(steps=100, spacing="rcg")
    noise = invert(process, net, data, None, process.levels(100, "rcg"))
    assert torch.allclose(sampler(process, net, SPACE, None, RecordedNoise([noise])), data, atol=1e-4)
