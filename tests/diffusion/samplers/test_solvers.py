"""Higher-order solvers and flows against diffusers' schedulers and a Gaussian whose exact flow is known."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from rcg.core.contracts import Level, Space
from rcg.core.errors import UserError
from rcg.core.registry import SAMPLERS
from rcg.core.rng import SampleNoise
from rcg.diffusion.processes.flow import Flow, FlowConfig
from rcg.diffusion.processes.gaussian import Gaussian, GaussianConfig, betas
from rcg.diffusion.samplers.ddim import DDIM
from rcg.diffusion.samplers.dpm_solver import DPMSolver
from rcg.diffusion.samplers.heun import Heun
from rcg.diffusion.samplers.unipc import UniPC
from tests.ideal import CONTINUOUS, MEAN, SPACE, STD, BatchNoise, RecordedNoise, ideal, smooth

SOLVERS = [Heun, DPMSolver, UniPC]


def exact(process, start):
    """Follow the probability flow of N(MEAN, STD^2) from `start` to clean data."""
    first = process.levels(2, "trailing")[0]
    return MEAN + STD * (start - first.alpha * MEAN) / math.sqrt(first.alpha**2 * STD**2 + first.sigma**2)


PROCESSES = {
    "vp": Gaussian(GaussianConfig(schedule="sqrt_linear", predict="x0")),
    "zero-terminal": Gaussian(GaussianConfig(schedule="linear", predict="v", zero_terminal_snr=True)),
    "flow": Flow(FlowConfig()),
    "shifted flow": Flow(FlowConfig(shift=3.0)),
}


def error(sampler, process):
    x = sampler(process, ideal(process), SPACE, None, BatchNoise(64))
    return (x - exact(process, BatchNoise(64).normal((4,)))).abs().max().item()


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_converge_to_the_exact_flow(process, solver):
    errors = [error(solver(steps=steps), process) for steps in (16, 64, 256)]
    assert errors[2] < errors[1] / 2 < errors[0] / 4


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_beat_euler_on_a_flow_at_equal_evaluations(solver):
    # Even steps in t end close to clean data; a VP schedule's last step is longer than all others and hides the order.
    process = PROCESSES["flow"]
    assert error(solver(steps=32), process) < 0.5 * error(DDIM(steps=32), process)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 16, 50])
@pytest.mark.parametrize(("predict", "theirs"), [("x0", "sample"), ("eps", "epsilon"), ("v", "v_prediction")])
@pytest.mark.parametrize(
    ("solver", "scheduler"), [(DPMSolver, DPMSolverMultistepScheduler), (UniPC, UniPCMultistepScheduler)]
)
def test_multistep_solvers_agree_with_diffusers(solver, scheduler, predict, theirs, steps):
    process = Gaussian(GaussianConfig(schedule="sqrt_linear", predict=predict))
    oracle = scheduler(
        trained_betas=betas("sqrt_linear", 1000),
        prediction_type=theirs,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        solver_order=2,
    )
    oracle.set_timesteps(steps)
    start = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    expected = start
    for t in oracle.timesteps:
        expected = oracle.step(smooth(expected, t.expand(5), None)[:, 0], t, expected).prev_sample

    class Same(Gaussian):
        """Visit the levels that the oracle visits."""

        def levels(self, steps, spacing):
            return [*(self._level(int(t)) for t in oracle.timesteps), Level(0, 1.0, 0.0)]

    same = Same(GaussianConfig(schedule="sqrt_linear", predict=predict))
    assert abs(same.levels(steps, "")[0].t - process.levels(steps, "trailing")[0].t) <= 1
    ours = solver(steps=steps)(same, smooth, SPACE, None, RecordedNoise([start]))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("levels", [1, 2, 7, 20])
def test_heun_agrees_with_diffusers(levels):
    process = Gaussian(GaussianConfig(schedule="sqrt_linear", predict="eps"))
    oracle = HeunDiscreteScheduler(trained_betas=betas("sqrt_linear", 1000), timestep_spacing="trailing")
    visited = [int(level.t) for level in process.levels(levels, "trailing")[:-1]]
    oracle.set_timesteps(timesteps=visited)
    start = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    first = process.levels(levels, "trailing")[0]
    expected = start / first.alpha  # theirs steps in x / alpha
    for t in oracle.timesteps:
        seen = oracle.scale_model_input(expected, t)
        expected = oracle.step(smooth(seen, t.expand(5), None)[:, 0], t, expected).prev_sample
    sampler = Heun(steps=2 * levels - 1)
    torch.testing.assert_close(
        sampler(process, smooth, SPACE, None, RecordedNoise([start])), expected, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_ddim_on_a_flow_is_eulers_method_of_diffusers(shift, steps):
    process = Flow(FlowConfig(shift=shift))
    oracle = FlowMatchEulerDiscreteScheduler()
    sigmas = [level.sigma for level in process.levels(steps, "trailing")[:-1]]
    oracle.set_timesteps(sigmas=sigmas)
    start = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    expected = start
    for t in oracle.timesteps:
        expected = oracle.step(smooth(expected, t.expand(5), None)[:, 0], t, expected).prev_sample
    ours = DDIM(steps=steps)(process, smooth, SPACE, None, RecordedNoise([start]))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_every_sampler_samples_every_process_in_any_number_of_steps(name, process):
    for steps in (1, 2, 3, 5, 8, 13, 100, 333, 1000):
        sampler = SAMPLERS.get(name)(steps=steps)
        x = sampler(process, ideal(process), SPACE, None, SampleNoise(0, range(8), "t"))
        assert torch.isfinite(x).all()
        assert x.mean().item() == pytest.approx(MEAN, abs=0.35)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_every_sampler_finishes_at_every_step_count(name):
    process, space = PROCESSES["vp"], Space((1,))
    for steps in [*range(1, 40), 88, 333, 999, 1000]:
        calls = []

        def net(x, t, cond, calls=calls):
            calls.append(t)
            return 0 * x[:, None] + 0.5

        sampler = SAMPLERS.get(name)(steps=steps)
        assert sampler(
            process, net, space, None, RecordedNoise([torch.zeros(1, 1)] * (steps + 1))
        ).item() == pytest.approx(0.5, abs=1e-4)
        assert len(calls) == (steps - 1 + steps % 2 if name == "heun" else steps)


@pytest.mark.parametrize("steps", [8, 16, 50])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_small_errors_near_pure_noise_change_little(name, steps):
    process = Gaussian(GaussianConfig(schedule="cosine", predict="v"))  # starts where alpha is 5e-5

    def net(x, t, cond):
        return ideal(process)(x, t, cond) + 0.01 * torch.sin(10 * x)[:, None]

    sampler = SAMPLERS.get(name)(steps=steps)
    x = sampler(process, net, SPACE, None, SampleNoise(0, range(64), "t"))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.2)
    assert x.std().item() == pytest.approx(STD, rel=0.35)


def test_a_flow_starts_at_noise_only():
    with pytest.raises(UserError, match="a flow starts at pure noise"):
        Flow(FlowConfig()).levels(4, "leading")


def test_absolute_errors_are_measured_where_asked():
    process = Gaussian(GaussianConfig(predict="eps", loss="l1"))
    losses = process.loss(lambda x, t, cond: torch.zeros_like(x)[:, None], torch.randn(20_000, 2), None)
    assert losses["l1"].item() == pytest.approx(math.sqrt(2 / math.pi), rel=0.02)


def test_a_zero_terminal_schedule_ends_in_noise_and_keeps_its_start():
    plain, rescaled = Gaussian(GaussianConfig()), PROCESSES["zero-terminal"]
    assert rescaled.alpha_bar[-1] == 0
    assert rescaled.alpha_bar[0] == pytest.approx(plain.alpha_bar[0])
    assert all(a > b for a, b in pairwise(rescaled.alpha_bar))
    with pytest.raises(ValueError, match="zero_terminal_snr needs predict x0, v or velocity"):
        GaussianConfig(zero_terminal_snr=True)
