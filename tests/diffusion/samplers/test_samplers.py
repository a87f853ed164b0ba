"""Samplers against a Gaussian whose ideal denoiser is known, against diffusers, and against recorded trajectories."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from rcg.core.errors import UserError
from rcg.core.registry import SAMPLERS
from rcg.core.rng import SampleNoise
from rcg.diffusion.processes.gaussian import Gaussian, GaussianConfig, betas
from rcg.diffusion.samplers.ddim import DDIM
from rcg.diffusion.samplers.ddpm import DDPM
from tests.ideal import CONTINUOUS, MEAN, SPACE, STD, BatchNoise, RecordedNoise, ideal, smooth


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
@pytest.mark.parametrize("sampler", [DDIM(eta=0.0), DDIM(eta=1.0), DDPM()])
def test_gaussian_data_is_sampled_with_its_mean_and_std(predict, sampler):
    # Steps of finite size lose a little variance at eta 1 (4 % of the std at 200 steps), so all levels are used.
    process = Gaussian(GaussianConfig(schedule="linear", predict=predict))
    x = sampler.with_steps(1000)(process, ideal(process), SPACE, None, BatchNoise(8_000))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert x.std().item() == pytest.approx(STD, rel=0.015)


@pytest.mark.parametrize(("boost", "same"), [(0.0, DDIM(eta=0.0, steps=8)), (1.0, DDIM(eta=1.0, steps=8))])
def test_quality_is_boosted_nowhere_or_everywhere(boost, same):
    process = Gaussian(GaussianConfig(schedule="cosine", predict="x0"))
    boosted = DDIM(steps=8, boost=boost)
    first, second = (sampler(process, ideal(process), SPACE, None, BatchNoise(4)) for sampler in (boosted, same))
    assert torch.equal(first, second)


def test_quality_is_boosted_below_a_time_alone():
    process, noise = Gaussian(GaussianConfig(schedule="cosine", predict="x0")), BatchNoise(4)
    times, drawn = [], []

    def net(x, t, cond):
        times.append(float(t[0]))
        return ideal(process)(x, t, cond)

    class Counted:
        def normal(self, shape):
            drawn.append(times[-1] if times else None)
            return noise.normal(shape)

    DDIM(steps=20, boost=0.3)(process, net, SPACE, None, Counted())
    # One draw to start with, and one for every step from below 300 on but the last, which ends at clean data.
    assert drawn == [None, *[t for t in times if t < 300][:-1]]


def test_ddim_converges_at_first_order_to_the_exact_flow_of_gaussian_data():
    # With eta 0 and the ideal denoiser, (x - alpha mean) / (marginal std) is constant along the exact flow.
    process = Gaussian(GaussianConfig(schedule="linear", predict="x0"))
    start = BatchNoise(64).normal((4,))
    alpha, sigma = process.alpha[-1].item(), process.sigma[-1].item()
    exact = MEAN + STD * (start - alpha * MEAN) / math.sqrt(alpha**2 * STD**2 + sigma**2)
    errors = []
    for steps in (125, 250, 500, 1000):
        x = DDIM(steps=steps)(process, ideal(process), SPACE, None, BatchNoise(64))
        errors.append((x - exact).abs().max().item())
    assert errors[-1] < 0.01
    assert all(coarse / fine == pytest.approx(2, rel=0.15) for coarse, fine in pairwise(errors))


SPACINGS = ["trailing", "leading", "linspace", "rcg"]
FEWEST = {"trailing": 1, "leading": 2, "linspace": 1, "rcg": 2}
"""A single step of the others would begin at clean data."""
COUNTS = [(spacing, steps) for spacing in SPACINGS for steps in range(FEWEST[spacing], 1001)]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps_spreads_over_the_whole_range(spacing):
    process = Gaussian(GaussianConfig(predict="x0"))
    for steps in [steps for known, steps in COUNTS if known == spacing]:
        *visited, end = [level.t for level in process.levels(steps, spacing)]
        assert len(visited) == steps
        assert end == 0
        assert all(a > b for a, b in pairwise(visited))
        as_published = spacing in ("leading", "rcg") and 1000 % steps == 0
        shift = 1 if spacing == "rcg" and steps < 1000 else 0
        assert visited[0] == (1000 - 1000 // steps + shift if as_published else 999)
        assert spacing == "trailing" or steps == 1 or visited[-1] == shift


def through(process, sampler, mean, variance):
    """Return mean and std of what deterministic DDIM makes of a Gaussian with the ideal denoiser of N(MEAN, STD^2)."""
    for level, target in pairwise(process.levels(sampler.steps, sampler.spacing)):
        pull = level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)
        kept = target.sigma / level.sigma  # x_s = kept x_t + (alpha_s - alpha_t kept) x_0(x_t)
        rest = target.alpha - level.alpha * kept
        x0 = MEAN + pull * (mean - level.alpha * MEAN)
        mean, variance = kept * mean + rest * x0, (kept + rest * pull) ** 2 * variance
    return mean, math.sqrt(variance)


@pytest.mark.parametrize("schedule", ["linear", "sqrt_linear", "cosine"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps_has_the_mean_and_std_of_the_data(schedule, spacing):
    process = Gaussian(GaussianConfig(schedule=schedule, predict="x0"))
    gap = 1 if schedule == "linear" and spacing in ("leading", "rcg") else 37  # all counts take seconds
    for steps in range(10, 1001, gap):
        mean, std = through(process, DDIM(steps=steps, spacing=spacing), 0.0, 1.0)
        assert mean == pytest.approx(MEAN, abs=0.04), steps
        assert std == pytest.approx(STD, abs=0.005 + 2.5 / steps), steps  # a method of first order
    sampler = DDIM(steps=600, spacing=spacing)
    x = sampler(process, ideal(process), SPACE, None, BatchNoise(2000))
    mean, std = through(process, sampler, 0.0, 1.0)
    assert x.mean().item() == pytest.approx(mean, abs=0.02)
    assert x.std().item() == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize("spacing", ["leading", "rcg"])
def test_sampling_does_not_begin_at_clean_data(spacing):
    with pytest.raises(UserError, match="is not noise: use spacing trailing, or more steps"):
        DDIM(steps=1, spacing=spacing).check(Gaussian(GaussianConfig()))


@pytest.mark.parametrize(
    ("spacing", "steps"), [pair for pair in COUNTS if pair[1] in (1, 2, 3, 7, 300, 400, 999, 1000)]
)
def test_ddim_works_for_every_number_of_steps(steps, spacing):
    process = Gaussian(GaussianConfig(predict="x0"))
    x = DDIM(steps=steps, spacing=spacing)(process, ideal(process), SPACE, None, SampleNoise(0, range(8), "t"))
    assert torch.isfinite(x).all()
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
        output = smooth(expected, t.expand(5), None)[:, 0]
        expected = scheduler.step(
            output, t, expected, eta=eta, variance_noise=noise, use_clipped_model_output=clip
        ).prev_sample
    # At eta > 0 diffusers draws at the last step too, with std 0: our sampler does not ask for that draw.
    sampler = DDIM(steps=20, eta=eta, spacing=spacing, clip=clip)
    ours = sampler(process, smooth, SPACE, None, RecordedNoise(draws))
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
        expected = scheduler.step(smooth(expected, t.expand(5), None)[:, 0], t, expected).prev_sample
    ours = DDPM(steps=steps)(process, smooth, SPACE, None, RecordedNoise(draws))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_sample_does_not_depend_on_its_batch(name):
    sampler = SAMPLERS.get(name)(steps=10)
    process = Gaussian(GaussianConfig(predict="x0"))
    together = sampler(process, smooth, SPACE, None, SampleNoise(3, range(6), "test"))
    alone = sampler(process, smooth, SPACE, None, SampleNoise(3, [4], "test"))
    torch.testing.assert_close(together[4:5], alone)
