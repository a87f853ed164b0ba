"""RePaint on correlated pixels, whose distribution given one of them is known."""

import math

import pytest
import torch

from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import SAMPLERS
from rcg.core.rng import SampleNoise
from rcg.diffusion.processes.flow import Flow, FlowConfig
from rcg.diffusion.processes.gaussian import Gaussian, GaussianConfig
from rcg.diffusion.repaint import Resampling, repaint
from tests.ideal import CONTINUOUS, BatchNoise, ideal
from tests.models import dit

STD, CORRELATION = 0.5, 0.9
COVARIANCE = STD**2 * torch.tensor([[1, CORRELATION], [CORRELATION, 1]])
SEEN = 0.8
HALF_KNOWN = torch.tensor([SEEN, torch.nan])
FLOW = Flow(FlowConfig(shift=0.1))
"""Its levels lie close together at clean data, where what is generated settles."""


def correlated(x, t, cond):
    """The velocity eps - x_0 when data is N(0, COVARIANCE)."""
    alpha, sigma = (scale[0].item() for scale in FLOW.scales(t))
    gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(2))
    x0 = x @ gain
    return ((x - alpha * x0) / sigma - x0)[:, None]


def completed(times, count=500):
    known = HALF_KNOWN.expand(count, -1)
    sampler = SAMPLERS.get("ddim")(steps=20)
    return repaint(
        sampler, FLOW, correlated, Space((2,)), None, BatchNoise(count), known, Resampling(times, jump_length=2)
    )


def test_with_resampling_the_hole_has_its_mean_and_std_given_the_rest():
    count = 500
    mean, std = CORRELATION * SEEN, STD * math.sqrt(1 - CORRELATION**2)
    result = completed(40, count)[:, 1]
    assert result.mean().item() == pytest.approx(mean, abs=3 * std / math.sqrt(count))
    assert result.std().item() == pytest.approx(std, abs=3 * std / math.sqrt(2 * count))


def test_without_resampling_it_hardly_knows_of_the_rest():
    off = [abs(completed(times)[:, 1].mean().item() - CORRELATION * SEEN) for times in (1, 5, 20)]
    assert off[0] > 0.3
    assert off[0] > 3 * off[1] > 6 * off[2]


@pytest.mark.parametrize("process", [FLOW, Gaussian(GaussianConfig(predict="x0"))])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_every_sampler_keeps_what_is_known_and_gives_each_sample_its_own_noise(name, process):
    sampler, space = SAMPLERS.get(name)(steps=7), Space((4,))
    known = torch.tensor([[0.5, torch.nan, 0.7, torch.nan], [torch.nan, 0.2, 0.1, torch.nan]])
    both, alone = (
        repaint(sampler, process, ideal(process), space, None, SampleNoise(0, rows, "t"), known[rows], Resampling(2, 3))
        for rows in ([0, 1], [1])
    )
    assert torch.equal(both[~known.isnan()], known[~known.isnan()])
    assert torch.equal(both[1:], alone)
    assert both.isfinite().all()
    assert both[0, 1] != both[0, 3]


@pytest.mark.parametrize(("resampling", "stretches"), [(Resampling(3, 4), (4, 4, 2)), (Resampling(2), (1,) * 10)])
def test_each_stretch_is_taken_so_many_times(resampling, stretches):
    seen, net = [], ideal(FLOW)
    known = torch.full((1, 4), torch.nan)
    sampler = SAMPLERS.get("ddim")(steps=10)
    repaint(
        sampler,
        FLOW,
        lambda x, t, cond: seen.append(t.item()) or net(x, t, cond),
        Space((4,)),
        None,
        BatchNoise(1),
        known,
        resampling,
    )
    levels, expected = [level.t for level in sampler.levels(FLOW)[:-1]], []
    for length in stretches:
        expected += levels[:length] * resampling.times
        levels = levels[length:]
    assert seen == pytest.approx(expected)


def test_by_default_a_stretch_is_a_25th_of_all_steps():
    starts = []
    sampler = SAMPLERS.get("ddpm")(steps=250)

    class Watched(type(sampler)):
        def __call__(self, process, *args):
            starts.append(len(process.levels(0)) - 1)
            return super().__call__(process, *args)

    known = torch.full((1, 4), torch.nan)
    repaint(Watched(steps=250), FLOW, ideal(FLOW), Space((4,)), None, BatchNoise(1), known, Resampling(1))
    assert starts == [10] * 25


def test_the_estimate_of_a_self_conditioned_model_outlives_a_stretch():
    m, seen = dit(self_condition=True, sampler={"name": "ddim", "steps": 2}), []
    m.network.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, 3:]))
    known = torch.full((1, 3, 8, 8), torch.nan)
    with torch.no_grad():
        m.sample(None, SampleNoise(0, [0], "t"), known=known, resampling=Resampling(2, 1))
    assert [estimate.any().item() for estimate in seen] == [False, True, True, True]


def test_known_pixels_are_shown_with_the_noise_of_the_level():
    seen = []
    known = torch.full((4000, 1), SEEN)

    def net(x, t, cond):
        seen.append((x, t[0]))
        return torch.zeros_like(x)[:, None]

    sampler = SAMPLERS.get("ddim")(steps=2)
    repaint(sampler, FLOW, net, Space((1,)), None, BatchNoise(4000), known, Resampling(1))
    for x, t in seen:
        alpha, sigma = (scale.item() for scale in FLOW.scales(t[None]))
        assert x.mean().item() == pytest.approx(alpha * SEEN, abs=0.05)
        assert x.std().item() == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize("values", [{"times": 0}, {"jump_length": 0}, {"times": -3}])
def test_fewer_than_one_are_refused(values):
    with pytest.raises(UserError, match="whole numbers from 1 on"):
        Resampling(**values)
