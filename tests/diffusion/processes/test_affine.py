"""What is predicted, in what it is measured, and at which times: of Gaussian processes and flows alike."""

import itertools
from typing import get_args

import pytest
import torch

from rcg.core.registry import SAMPLERS
from rcg.core.rng import SampleNoise
from rcg.diffusion.processes._affine import Quantity, expand_like
from rcg.diffusion.processes.flow import Flow, FlowConfig
from rcg.diffusion.processes.gaussian import Gaussian, GaussianConfig
from tests.ideal import CONTINUOUS, SPACE, ideal

PROCESSES = [(Gaussian, GaussianConfig), (Flow, FlowConfig)]
QUANTITIES = get_args(Quantity)
PAIRS = list(itertools.product(QUANTITIES, QUANTITIES))


def squared_weight(quantity, alpha, sigma):
    """Return how often a squared error of x0 counts when it is measured in `quantity`."""
    return {
        "x0": torch.ones_like(sigma),
        "eps": (alpha / sigma) ** 2,
        "v": ((alpha**2 + sigma**2) / sigma) ** 2,
        "velocity": ((alpha + sigma) / sigma) ** 2,
    }[quantity]


def trained(process, times):
    """Return the parts of a training step of 6 samples at `times`, and an estimate of clean data that is wrong."""
    x, noise, wrong = torch.randn(3, len(times), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(times)
    return x, noise, t, process.corrupt(x, t, noise), x + 0.1 * wrong


@pytest.mark.parametrize(("predict", "measure"), PAIRS)
@pytest.mark.parametrize(("process", "config"), PROCESSES)
def test_an_error_counts_as_often_as_it_does_in_what_it_is_measured(process, config, predict, measure):
    process = process(config(measure=measure)).double()
    process.predicts = predict  # a flow refuses eps, for which nothing but the start of sampling is undefined
    x, noise, t, x_t, x0 = trained(process, [60, 200, 400, 500, 700])
    alpha, sigma = (expand_like(scale, x) for scale in process.scales(t))
    eps = (x_t - alpha * x0) / sigma
    output = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "velocity": eps - x0}[predict]
    expected = (squared_weight(measure, alpha, sigma) * (x0 - x) ** 2).mean()
    torch.testing.assert_close(process.errors(output[:, None], x, x_t, t, noise)["mse"], expected)


@pytest.mark.parametrize(("process", "config"), PROCESSES)
def test_the_divisor_is_never_below_a_twentieth(process, config):
    process = process(config(predict="x0", measure="velocity")).double()
    x, noise, t, x_t, x0 = trained(process, [0, 1, 2])
    alpha, sigma = (expand_like(scale, x) for scale in process.scales(t))
    assert sigma.max() < 0.05
    # JiT computes both velocities, (x_t - x0) / max(sigma, 0.05), where alpha + sigma is 1.
    expected = (((alpha + sigma) * (x_t - x0) / 0.05 - (alpha + sigma) * (x_t - x) / 0.05) ** 2).mean()
    torch.testing.assert_close(process.errors(x0[:, None], x, x_t, t, noise)["mse"], expected)


@pytest.mark.parametrize("predict", ["x0", "eps"])
def test_what_is_measured_as_predicted_is_left_alone_even_without_noise(predict):
    plain, named = (Gaussian(GaussianConfig(predict=predict, measure=measure)) for measure in (None, predict))
    x, noise, t, x_t, x0 = (value.float() if value.is_floating_point() else value for value in trained(plain, [0, 999]))
    losses = [process.errors(x0[:, None], x, x_t, t, noise)["mse"] for process in (plain, named)]
    assert losses[0] == losses[1] == (x0 - plain.target(x, t, noise)).square().mean()


def test_absolute_errors_are_measured_elsewhere_too():
    process = Flow(FlowConfig(predict="x0", measure="velocity", loss="l1"))
    x, noise, t, x_t, x0 = trained(process, [500, 500])
    torch.testing.assert_close(process.errors(x0[:, None], x, x_t, t, noise)["l1"], 2 * (x0 - x).abs().mean())


def test_the_measure_leaves_the_learned_variance_alone():
    terms = []
    for measure in (None, "velocity"):
        process = Gaussian(GaussianConfig(variance="learned_range", measure=measure)).double()
        x, noise, t, x_t, x0 = trained(process, [100, 700])
        terms.append(process.errors(torch.stack([x0, 0.1 * x0], dim=1), x, x_t, t, noise)["vb"])
    assert terms[0] == terms[1]


@pytest.mark.parametrize("predict", ["x0", "v"])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_every_sampler_samples_a_flow_whatever_it_predicts(name, predict):
    sampler, process = SAMPLERS.get(name)(steps=12), Flow(FlowConfig(predict=predict))
    expected, x = (
        sampler(flow, ideal(flow), SPACE, None, SampleNoise(0, range(8), "t")) for flow in (Flow(FlowConfig()), process)
    )
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=0)


def test_a_flow_cannot_predict_the_noise():
    with pytest.raises(ValueError, match="a flow needs predict velocity, x0 or v: at pure noise"):
        FlowConfig(predict="eps")


@pytest.mark.parametrize(("process", "config"), PROCESSES)
@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [
        ({"time": "pixels"}, -1.2, 1.2),
        ({"time": "latents"}, 0.0, 1.0),
        ({"time": "logit_normal", "time_mean": 0.8, "time_std": 0.8}, 0.8, 0.8),
    ],
)
def test_the_ratio_of_noise_to_signal_is_log_normal(process, config, settings, mean, std):
    process, count = process(config(**settings)), 50_000
    torch.manual_seed(0)
    alpha, sigma = process.scales(process.draw(torch.zeros(count, 1)).t)
    quantiles = torch.linspace(0.05, 0.95, 19)
    expected = torch.distributions.Normal(mean, std).icdf(quantiles)
    # Levels of the Gaussian process are up to 0.05 apart, in between its ends.
    torch.testing.assert_close(torch.log(sigma / alpha).quantile(quantiles), expected, atol=0.05, rtol=0)


def test_a_shift_moves_the_times_of_a_flow_by_its_logarithm():
    x = torch.zeros(20_000, 1)
    torch.manual_seed(0)
    logit = torch.logit(Flow(FlowConfig(time="latents")).draw(x).t / 1000)
    torch.manual_seed(0)
    shifted = torch.logit(Flow(FlowConfig(time="latents", shift=3.0)).draw(x).t / 1000)
    torch.testing.assert_close(shifted, logit + torch.tensor(3.0).log(), atol=1e-3, rtol=0)
    uniform = Flow(FlowConfig(time="uniform", shift=3.0)).draw(x).t / 1000
    assert (uniform < 0.75).float().mean().item() == pytest.approx(0.5, abs=0.02)  # 3 / 2 / (1 + 2 / 2) = 0.75


@pytest.mark.parametrize("schedule", [{"schedule": "cosine"}, {"predict": "v", "zero_terminal_snr": True}])
def test_ratios_beyond_the_first_or_last_level_have_that_level(schedule):
    process = Gaussian(GaussianConfig(**schedule))
    # At a terminal level of pure noise the ratio is infinite: the one before is the nearest to any number.
    last = 998 if process.alpha_bar[-1] == 0 else 999
    assert process.times_at(torch.tensor([-50.0, 50.0])).tolist() == [0, last]


def test_numbers_beside_a_preset_of_times_are_refused():
    with pytest.raises(ValueError, match="time: pixels has a mean and a std of its own"):
        FlowConfig(time="pixels", time_mean=0.5)
