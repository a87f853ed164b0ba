"""Samplers against a Gaussian whose ideal denoiser is known, against diffusers, and against recorded trajectories."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import SAMPLERS
from rcg.core.rng import Streams
from rcg.diffusion.processes.gaussian import Gaussian, GaussianConfig, betas
from rcg.diffusion.samplers.ddim import DDIM, DDIMConfig
from rcg.diffusion.samplers.ddpm import DDPM, DDPMConfig

MEAN, STD = 0.7, 0.4
SPACE = Space((4,))
WALKS = [name for name in SAMPLERS.names() if not SAMPLERS.get(name).Config.discrete]


class Recorded:
    """A noise source that repeats given draws."""

    def __init__(self, draws):
        self.draws = iter(draws)

    def normal(self, shape):
        return next(self.draws)


class Common:
    """One stream for a whole batch: quick, for statistics."""

    def __init__(self, batch):
        self.batch, self.generator = batch, torch.Generator().manual_seed(0)

    def normal(self, shape):
        return torch.randn(self.batch, *shape, generator=self.generator)


def ideal(process):
    """The exact answer of the network when data is N(MEAN, STD^2): E[x0 | x_t] in the process's parameterisation."""

    def net(x, t, cond):
        alpha, sigma = process.alpha[t][:, None], process.sigma[t][:, None]
        x0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        eps = (x - alpha * x0) / sigma
        return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[process.predicts][:, None]

    return net


def toy(x, t, cond):
    """Any smooth function of x and t will do as a network."""
    return (torch.tanh(x + t[:, None] / 700) * 0.8)[:, None]


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
@pytest.mark.parametrize("sampler", [DDIM(DDIMConfig(eta=0.0)), DDIM(DDIMConfig(eta=1.0)), DDPM(DDPMConfig())])
def test_gaussian_data_is_sampled_with_its_mean_and_deviation(predict, sampler):
    # Steps of finite size lose a little variance at eta 1 (4 % of the deviation at 200 steps), so all levels are used.
    sampler.config = sampler.config.model_copy(update={"steps": 1000})
    process = Gaussian(GaussianConfig(schedule="linear", predict=predict))
    x = sampler(process, ideal(process), SPACE, None, Common(20_000))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert x.std().item() == pytest.approx(STD, rel=0.015)


def test_ddim_converges_at_first_order_to_the_exact_flow_of_gaussian_data():
    # With eta 0 and the ideal denoiser, (x - alpha mean) / (marginal deviation) is constant along the exact flow.
    process = Gaussian(GaussianConfig(schedule="linear", predict="x0"))
    start = Common(64).normal((4,))
    alpha, sigma = process.alpha[-1].item(), process.sigma[-1].item()
    exact = MEAN + STD * (start - alpha * MEAN) / math.sqrt(alpha**2 * STD**2 + sigma**2)
    errors = []
    for steps in (125, 250, 500, 1000):
        x = DDIM(DDIMConfig(steps=steps))(process, ideal(process), SPACE, None, Common(64))
        errors.append((x - exact).abs().max().item())
    assert errors[-1] < 0.01
    assert all(coarse / fine == pytest.approx(2, rel=0.15) for coarse, fine in pairwise(errors))


@pytest.mark.parametrize("steps", range(1, 1001))
def test_ddim_visits_the_asked_number_of_levels(steps):
    process = Gaussian(GaussianConfig(predict="x0"))
    for spacing in ("trailing", "leading", "linspace", "rcg"):
        *visited, end = [level.t for level in process.levels(steps, spacing)]
        assert len(visited) == steps
        assert end == 0
        assert all(a > b for a, b in pairwise(visited))
        assert visited[-1] >= 0
        assert visited[0] <= 999


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 300, 400, 999, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "rcg"])
def test_ddim_works_for_every_number_of_steps(steps, spacing):
    process = Gaussian(GaussianConfig(predict="x0"))
    x = DDIM(DDIMConfig(steps=steps, spacing=spacing))(process, ideal(process), SPACE, None, Streams(0, range(8), "t"))
    assert torch.isfinite(x).all()
    if spacing in ("trailing", "linspace") or steps > 2:  # a walk that starts at a clean level cannot reach the mean
        assert x.mean().item() == pytest.approx(MEAN, abs=0.3)


def test_more_steps_than_levels_are_refused():
    with pytest.raises(UserError, match="steps is 1001"):
        Gaussian(GaussianConfig()).levels(1001, "trailing")


@pytest.mark.parametrize(("predict", "theirs"), [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim_agrees_with_diffusers(predict, theirs, eta, spacing, clip):
    process = Gaussian(GaussianConfig(schedule="sqrt_linear", predict=predict))
    scheduler = DDIMScheduler(
        trained_betas=betas("sqrt_linear", 1000), prediction_type=theirs, timestep_spacing=spacing, clip_sample=clip
    )
    draws = torch.randn(21, 5, 4, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(20)
    expected = draws[0]
    for t, noise in zip(scheduler.timesteps, draws[1:]):
        output = toy(expected, t.expand(5), None)[:, 0]
        expected = scheduler.step(
            output, t, expected, eta=eta, variance_noise=noise, use_clipped_model_output=clip
        ).prev_sample
    # At eta > 0 diffusers draws at the last step too, with deviation 0: our sampler does not ask for that draw.
    config = DDIMConfig(steps=20, eta=eta, spacing=spacing, clip=clip)
    ours = DDIM(config)(process, toy, SPACE, None, Recorded(draws))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


# With the large variance diffusers adds noise at the last of fewer than T steps, where Ho et al. add none.
@pytest.mark.parametrize(
    ("variance", "steps"), [("fixed_small", 10), ("fixed_small", 250), ("fixed_small", 1000), ("fixed_large", 1000)]
)
def test_ddpm_agrees_with_diffusers(variance, steps, monkeypatch):
    process = Gaussian(GaussianConfig(schedule="linear", predict="eps", variance=variance))
    scheduler = DDPMScheduler(
        trained_betas=betas("linear", 1000), variance_type=variance, timestep_spacing="trailing", clip_sample=False
    )
    draws = torch.randn(steps + 1, 5, 4, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(steps)
    source = iter(draws[1:])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(source))
    expected = draws[0]
    for t in scheduler.timesteps:
        expected = scheduler.step(toy(expected, t.expand(5), None)[:, 0], t, expected).prev_sample
    ours = DDPM(DDPMConfig(steps=steps))(process, toy, SPACE, None, Recorded(draws))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", WALKS)
def test_a_sample_does_not_depend_on_its_batch(name):
    sampler = SAMPLERS.get(name)(SAMPLERS.get(name).Config(steps=10))
    process = Gaussian(GaussianConfig(predict="x0"))
    together = sampler(process, toy, SPACE, None, Streams(3, range(6), "test"))
    alone = sampler(process, toy, SPACE, None, Streams(3, [4], "test"))
    torch.testing.assert_close(together[4:5], alone)
