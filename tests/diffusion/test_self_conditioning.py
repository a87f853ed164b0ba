"""The estimates that a self-conditioned network sees, in training and in sampling."""

from itertools import pairwise

import pytest
import torch

from rcg.config import GuidanceConfig
from rcg.core.contracts import MASK, Space
from rcg.core.rng import SampleNoise, batch_draws
from rcg.diffusion.model import build
from rcg.diffusion.networks.rep_mlp import RepMLP, RepMLPConfig
from rcg.diffusion.processes.gaussian import Gaussian, GaussianConfig
from rcg.diffusion.processes.masked import Masked, MaskedConfig
from rcg.diffusion.samplers.ddim import DDIM
from rcg.diffusion.samplers.maskgit import MaskGIT
from rcg.diffusion.self_conditioning import SelfConditioned, beside
from tests.ideal import BatchNoise
from tests.models import mage


class Recorder:
    """A network that predicts half of its input as x0 and notes the estimates that it was shown."""

    def __init__(self):
        self.shown = []

    def __call__(self, x, t, cond):
        x_t, estimate = x.chunk(2, dim=1)
        self.shown.append(estimate)
        return (x_t / 2)[:, None]


@pytest.fixture
def process():
    return Gaussian(GaussianConfig(predict="x0"))


def test_sampling_shows_the_network_its_last_estimate(process):
    net, seen = Recorder(), []
    wrapped = SelfConditioned(process)
    predict = wrapped.predict
    wrapped.predict = lambda *args: (
        seen.append(predict(*args).x0) or process.predict(lambda x, t, c: x[:, None], *args[1:])
    )
    DDIM(steps=4)(wrapped, net, Space((3,)), None, BatchNoise(5))
    assert torch.equal(net.shown[0], torch.zeros(5, 3))
    for shown, estimate in zip(net.shown[1:], seen, strict=False):
        assert torch.equal(shown, estimate)
    assert not torch.equal(net.shown[1], net.shown[2])


def test_training_shows_half_of_the_batch_an_estimate_without_gradients(process):
    net, x = Recorder(), torch.randn(6, 3)
    SelfConditioned(process).loss(net, x, None)
    first, second = net.shown
    assert torch.equal(first, torch.zeros(3, 3))
    assert second[::2].abs().min() > 0
    assert torch.equal(second[1::2], torch.zeros(3, 3))
    assert not second.requires_grad


@pytest.mark.parametrize(("place", "evaluations"), [(2, 2), (3, 1)])
def test_a_share_of_one_sample_has_an_estimate_if_its_place_in_the_batch_is_even(process, place, evaluations):
    net = Recorder()
    with batch_draws(0, place, 1, 4):
        SelfConditioned(process).loss(net, torch.randn(1, 3), None)
    assert [tuple(shown.shape) for shown in net.shown] == [(1, 3)] * evaluations


def test_guidance_and_two_samplings_do_not_mix_up_their_estimates():
    torch.manual_seed(0)
    config = RepMLPConfig(
        width=16, depth=1, condition="class", self_condition=True, sampler={"name": "heun", "steps": 3}
    )
    model = build(config, RepMLP, Space((4,)), Space((), vocab=3)).requires_grad_(False)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    guided = {"guidance": config.guidance.model_copy(update={"scale": 2.0})}
    both = model.sample(torch.tensor([0, 1]), SampleNoise(0, range(2), "t"), **guided)
    alone = model.sample(torch.tensor([1]), SampleNoise(0, [1], "t"), **guided)
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-4)


class Guesser:
    """A network of tokens `(B, 2h, w)`, surest of symbol 1, then of 2, ..., that notes the guesses it was shown."""

    def __init__(self):
        self.shown = []

    def __call__(self, x, t, cond):
        x_t, guess = x.chunk(2, dim=1)
        self.shown.append((x_t, guess))
        logits = torch.zeros(len(x), 1, 5, *x_t.shape[1:])
        logits[:, :, len(self.shown)] = 100
        return logits


def test_sampling_of_tokens_shows_the_network_its_last_guess():
    net, known = Guesser(), torch.full((3, 2, 2), MASK)
    known[:, 0, 0] = 0
    wrapped = SelfConditioned(Masked(MaskedConfig()))
    MaskGIT(steps=3)(wrapped, net, Space((2, 2), vocab=5), None, SampleNoise(0, range(3), "t"), known)
    assert (net.shown[0][1] == MASK).all()
    for number, ((before, _), (_, guess)) in enumerate(pairwise(net.shown), 1):
        assert torch.equal(guess, torch.where(before == MASK, number, before))


def test_training_on_tokens_shows_half_of_the_batch_a_guess():
    net = Guesser()
    SelfConditioned(Masked(MaskedConfig())).loss(net, torch.full((4, 4, 4), 3), None)
    (first, nothing), (corrupted, guess) = net.shown
    assert torch.equal(first, corrupted[::2])
    assert (nothing == MASK).all()
    assert torch.equal(guess[::2], torch.where(first == MASK, 1, first))
    assert (guess[1::2] == MASK).all()


def test_mage_uses_its_last_guess_once_it_has_learned_to(toy_autoencoder):
    m = mage(Space((), vocab=3), self_condition=True, dropout=0.0)
    x = torch.full((2, 4, 4), MASK)
    guesses = torch.stack([beside(x, torch.full_like(x, symbol)) for symbol in (MASK, 1, 2)])
    unchanged = [m.eval().network(given, torch.zeros(2)) for given in guesses]
    assert torch.equal(unchanged[0], unchanged[1])
    torch.nn.init.normal_(m.network.guess.weight)
    changed = [m.network(given, torch.zeros(2)) for given in guesses]
    assert not torch.allclose(changed[0], changed[1])
    assert not torch.allclose(changed[1], changed[2])
    m.train()(torch.randint(12, (4, 4, 4)), torch.tensor([0, 1, 2, 0]))["cross_entropy"].backward()
    assert m.network.guess.weight.grad.abs().sum() > 0
    noise, sampler = SampleNoise(0, range(2), "t"), m.config.sampler.with_steps(3)
    sample = m.eval().sample(torch.tensor([0, 1]), noise, guidance=GuidanceConfig(scale=2.0), sampler=sampler)
    assert sample.shape == (2, 4, 4)
