"""The asymmetric reverse process: a shift of h moves the estimate of clean data, and does not cancel (Asyrp)."""

import pytest
import torch
from torch import nn

from rcg.core.contracts import Denoiser, Interface
from rcg.core.registry import PROCESSES, SAMPLERS
from rcg.diffusion.h_space import Asymmetric, ConditionShift, Evaluation, MeanShift, ShiftNetwork, h_of, scaled
from rcg.diffusion.wrappers import ProcessWrapper
from tests.ideal import SPACE, RecordedNoise, ideal


class Toy(Denoiser):
    """The exact denoiser of a Gaussian, plus what comes out of the bottleneck: nothing, unless it is moved."""

    capabilities = frozenset({"h_space"})

    def __init__(self, process):
        super().__init__(None, Interface(SPACE))
        self.answer, self.middle = ideal(process), nn.Identity()

    def bottleneck(self, block=None):
        return self.middle

    def forward(self, x, t, cond=None):
        h = self.middle(torch.zeros_like(x) if cond is None else 0.0 * x + cond[:, None])
        return self.answer(x, t, None) + h[:, None]


class Symmetric(ProcessWrapper):
    """What the asymmetric process is not: the moved prediction replaces all of the plain one."""

    def __init__(self, process, shift):
        super().__init__(process)
        self.shift = shift

    def predict(self, net, x, level, cond):
        return self.process.predict(lambda x, t, cond: net(x, t, cond) + self.shift, x, level, cond)


@pytest.fixture
def process():
    component = PROCESSES.get("gaussian")
    return component(component.Config(schedule="linear", predict="eps"))


@pytest.fixture
def noise():
    return torch.randn(8, *SPACE.shape, generator=torch.Generator().manual_seed(0))


def sample(process, net, noise, steps=1000):
    return SAMPLERS.get("ddim")(steps=steps)(process, net, SPACE, None, RecordedNoise([noise]))


def test_symmetric_shifts_cancel_and_asymmetric_ones_do_not(process, noise):
    """Theorem 1: for many small steps, the two terms of a symmetric shift nearly cancel in each step."""
    net, shift = Toy(process), 0.1
    symmetric, asymmetric = (
        Symmetric(process, shift),
        Asymmetric(process, net, lambda seen: torch.full_like(seen.h, shift), end=0),
    )
    first, second = process.levels(1000, "trailing")[500:502]

    def step(chosen):
        x0, eps, _ = chosen.predict(net, noise, first, None)
        return second.alpha * x0 + second.sigma * eps

    plain = step(process)
    cancelled, kept = (float((step(chosen) - plain).abs().mean()) for chosen in (symmetric, asymmetric))
    assert cancelled < kept / 50
    # The asymmetric change is that of the estimate of clean data: alpha_s sigma_t / alpha_t times the shift.
    assert kept == pytest.approx(second.alpha * first.sigma / first.alpha * shift, rel=1e-4)


def test_every_step_adds_an_asymmetric_shift_again(process, noise):
    """So its effect grows with the number of steps, and stays where the shift is divided by it; a symmetric one's is
    small however many there are."""
    net, effects = Toy(process), []
    for steps in (40, 160):
        plain = sample(process, net, noise, steps)
        whole, divided = (
            Asymmetric(process, net, lambda seen, size=size: torch.full_like(seen.h, size), end=0.4)
            for size in (-0.01, -0.01 * 40 / steps)
        )
        changed = (whole, divided, Symmetric(process, -0.01))
        effects.append([float((sample(each, net, noise, steps) - plain).mean()) for each in changed])
    (whole, divided, symmetric), (whole_4, divided_4, symmetric_4) = effects
    assert whole_4 / whole == pytest.approx(4, rel=0.1)
    assert divided_4 / divided == pytest.approx(1, rel=0.1)
    assert symmetric_4 / symmetric == pytest.approx(1, rel=0.01)
    assert symmetric_4 < whole_4 / 10


def test_no_shift_changes_nothing(process, noise):
    net = Toy(process)
    edited = Asymmetric(process, net, lambda seen: 0 * seen.h, end=0)
    assert torch.equal(sample(edited, net, noise, 20), sample(process, net, noise, 20))


def test_editing_ends_at_a_time(process, noise):
    net, seen = Toy(process), []
    edited = Asymmetric(process, net, lambda now: (seen.append(float(now.t[0])), 0 * now.h)[1], end=0.5)
    sample(edited, net, noise, 20)
    assert seen
    assert min(seen) >= 500


def test_a_network_is_itself_again_afterwards(process, noise):
    net = Toy(process)
    before = sample(process, net, noise, 5)
    sample(Asymmetric(process, net, lambda seen: torch.ones_like(seen.h), end=0), net, noise, 5)
    assert torch.equal(sample(process, net, noise, 5), before)


def test_h_is_what_comes_out_of_the_bottleneck(process, noise):
    net, t = Toy(process), torch.full((8,), 10)
    source, target = torch.full((8,), 1.0), torch.arange(8.0)
    assert torch.equal(h_of(net, noise, t, target), target[:, None].expand(8, 4))
    seen = Evaluation(noise, t, h_of(net, noise, t, source))
    own, mean = ConditionShift(net, target), MeanShift()
    assert torch.equal(own(seen), (target - source)[:, None].expand(8, 4))
    mean.recorded(own)(seen)
    assert torch.equal(mean(seen), torch.full((1, 4), 2.5))


def test_a_shift_of_no_size_changes_nothing(process, noise):
    net = Toy(process)
    edited = Asymmetric(process, net, scaled(lambda seen: torch.ones_like(seen.h), 0.0), end=0)
    assert torch.equal(sample(edited, net, noise, 20), sample(process, net, noise, 20))


def test_a_mean_shift_is_that_of_the_nearest_time():
    mean = MeanShift()

    def at(time, h):
        return Evaluation(h, torch.full((len(h),), time), h)

    same = mean.recorded(lambda seen: seen.h)
    for time, values in ((10.0, [1.0, 2.0]), (10.0, [6.0]), (500.0, [8.0])):
        assert torch.equal(same(at(time, torch.tensor(values)[:, None])), torch.tensor(values)[:, None])
    for time, expected in ((0.0, 3.0), (100.0, 3.0), (400.0, 8.0)):
        assert mean(at(time, torch.zeros(5, 1))) == expected


def test_a_shift_network_treats_maps_and_tokens_alike():
    torch.manual_seed(0)
    network, h, t = ShiftNetwork(6, 8), torch.randn(2, 6, 3, 3), torch.tensor([3, 900])
    tokens = h.flatten(2).transpose(1, 2)
    torch.testing.assert_close(network(tokens, t).transpose(1, 2).view_as(h), network(h, t))
    assert not torch.allclose(network(h, t.flip(0)), network(h, t))
