"""SDEdit: at strength 0 nothing changes, at 1 everything does, and in between the process decides."""

import pytest
import torch

from rcg.core.contracts import MASK, Space
from rcg.core.registry import SAMPLERS
from rcg.core.rng import SampleNoise
from rcg.diffusion.processes.flow import Flow, FlowConfig
from rcg.diffusion.processes.gaussian import Gaussian, GaussianConfig
from rcg.diffusion.sdedit import level_at, mask_again, sdedit
from tests.ideal import CONTINUOUS, MEAN, STD, BatchNoise, ideal
from tests.models import dit, mage


class Ideal(torch.nn.Module):
    """The exact denoiser of Gaussian data, as a network; it counts its evaluations."""

    def __init__(self, process):
        super().__init__()
        self.net, self.calls = ideal(process), 0

    def forward(self, x, t, cond):
        self.calls += 1
        return self.net(x, t, cond)


def gaussian_model(process, **sampler):
    """A generative model of N(MEAN, STD^2) in four dimensions."""
    m = dit()
    m.config = m.config.model_copy(update={"sampler": SAMPLERS.get(sampler["name"])(**sampler)})
    m.process, m.network, m.data, m.cond = process, Ideal(process), Space((4,)), None
    return m


def flow_model(name="ddim", steps=10, **sampler):
    return gaussian_model(Flow(FlowConfig()), name=name, steps=steps, **sampler)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_at_strength_1_the_result_is_a_fresh_sample(name):
    m = flow_model(name)
    again = sdedit(m, torch.full((3, 4), 100.0), 1.0, None, SampleNoise(0, range(3), "t"))
    torch.testing.assert_close(again, m.sample(None, SampleNoise(0, range(3), "t")))


@pytest.mark.parametrize("m", [flow_model(), gaussian_model(Gaussian(GaussianConfig(predict="x0")), name="ddpm")])
def test_at_strength_0_the_sample_is_returned(m):
    x = torch.randn(3, 4)
    assert torch.equal(sdedit(m, x, 0.0, None, SampleNoise(0, range(3), "t")), x)


@pytest.mark.parametrize(("strength", "evaluations"), [(1.0, 10), (0.5, 5), (0.2, 2), (0.31, 4)])
def test_sampling_visits_the_remaining_levels(strength, evaluations):
    m = flow_model()
    sdedit(m, torch.zeros(2, 4), strength, None, BatchNoise(2))
    assert m.network.calls == evaluations


@pytest.mark.parametrize(
    "process", [Gaussian(GaussianConfig(predict="x0")), Flow(FlowConfig()), Flow(FlowConfig(shift=3))]
)
def test_a_level_is_a_share_of_the_levels_of_the_process(process):
    assert level_at(process, 1.0) == process.levels(10, "trailing")[0]
    assert level_at(process, 0.3) == pytest.approx(process.levels(10, "trailing")[7])
    assert level_at(process, 0.0).sigma == 0


def test_one_evaluation_gives_the_conditional_mean():
    # E[x0 | x_t] of the ideal denoiser, at x_t = alpha x + sigma eps with alpha = sigma = 1/2
    x, m = torch.full((20_000, 4), 2.0), flow_model(steps=1)
    again = sdedit(m, x, 0.5, None, BatchNoise(20_000))
    gain = 0.5 * STD**2 / (0.25 * STD**2 + 0.25)
    assert again.mean().item() == pytest.approx(MEAN + gain * 0.5 * (2.0 - MEAN), abs=0.01)
    assert again.std().item() == pytest.approx(gain * 0.5, rel=0.02)


def test_the_distribution_of_the_data_is_left_as_it_is():
    process = Gaussian(GaussianConfig(predict="x0"))
    m = gaussian_model(process, name="ddpm", steps=1000)
    x = MEAN + STD * torch.randn(5000, 4, generator=torch.Generator().manual_seed(1))
    again = sdedit(m, x, 0.3, None, BatchNoise(5000))
    assert again.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert again.std().item() == pytest.approx(STD, rel=0.02)
    correlation = torch.corrcoef(torch.stack([x.flatten(), again.flatten()]))[0, 1].item()
    level = level_at(process, 0.3)
    # two draws from p(x_0 | x_t) have x_t in common
    assert correlation == pytest.approx(level.alpha**2 * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2), abs=0.02)


def test_temperature_scales_the_noise_and_not_the_data():
    m = flow_model(steps=1, temperature=1e-6)
    x = torch.full((2, 4), 2.0)
    again = sdedit(m, x, 0.5, None, BatchNoise(2))
    expected = m.process.predict(m.network, 0.5 * x, level_at(m.process, 0.5), None).x0
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("strength", "masked"), [(0.0, 0), (0.5, 8), (0.3, 5), (1.0, 16)])
def test_a_share_of_the_tokens_is_masked(strength, masked):
    x = torch.randint(12, (5, 4, 4))
    again = mask_again(x, strength, SampleNoise(0, range(5), "t"))
    assert ((again == MASK).flatten(1).sum(1) == masked).all()
    assert torch.equal(again[again != MASK], x[again != MASK])
    assert strength in (0.0, 1.0) or not torch.equal(again[0] == MASK, again[1] == MASK)


def test_tokens_that_were_not_masked_stay_and_the_others_are_decoded_in_a_share_of_the_steps(toy_autoencoder):
    m = mage().eval()
    sampler = m.config.sampler.with_steps(8)
    x, seen = torch.randint(12, (3, 4, 4)), []
    m.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        drawn = sdedit(m, x, 0.5, None, SampleNoise(0, range(3), "t"), sampler=sampler)
        assert torch.equal(sdedit(m, x, 0.0, None, SampleNoise(0, range(3), "t")), x)
        fresh = sdedit(m, x, 1.0, None, SampleNoise(0, range(3), "t"), sampler=sampler)
    assert len(seen) == 4 + 8
    assert torch.equal(drawn[seen[0] != MASK], x[seen[0] != MASK])
    assert (seen[4] == MASK).all()
    assert (fresh != MASK).all()
    assert not torch.equal(drawn, x)
