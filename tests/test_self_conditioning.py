"""What a self-conditioned network sees, in training and on the walk from noise to data."""

import pytest
import torch

from rcg.contracts import Space
from rcg.model import build
from rcg.networks.rep_mlp import RepMLP, RepMLPConfig
from rcg.processes.gaussian import Gaussian, GaussianConfig
from rcg.randomness import Streams
from rcg.samplers.ddim import DDIM, DDIMConfig
from rcg.self_conditioning import SelfConditioned
from tests.samplers.test_samplers import Common


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


def test_a_walk_shows_the_network_its_last_estimate(process):
    net, seen = Recorder(), []
    walk = SelfConditioned(process)
    predict = walk.predict
    walk.predict = lambda *args: (
        seen.append(predict(*args).x0) or process.predict(lambda x, t, c: x[:, None], *args[1:])
    )
    DDIM(DDIMConfig(steps=4))(walk, net, Space((3,)), None, Common(5))
    assert torch.equal(net.shown[0], torch.zeros(5, 3))
    for shown, estimate in zip(net.shown[1:], seen, strict=False):
        assert torch.equal(shown, estimate)
    assert not torch.equal(net.shown[1], net.shown[2])


def test_training_shows_half_of_the_batch_an_estimate_without_gradients(process):
    net, x = Recorder(), torch.randn(6, 3)
    SelfConditioned(process).loss(net, x, None)
    first, second = net.shown
    assert torch.equal(first, torch.zeros(3, 3))
    assert second[:3].abs().min() > 0
    assert torch.equal(second[3:], torch.zeros(3, 3))
    assert not second.requires_grad


def test_a_batch_of_one_is_trained_without_an_estimate(process):
    net = Recorder()
    SelfConditioned(process).loss(net, torch.randn(1, 3), None)
    assert [tuple(shown.shape) for shown in net.shown] == [(1, 3)]


def test_guidance_and_two_walks_do_not_mix_up_their_estimates():
    torch.manual_seed(0)
    config = RepMLPConfig(
        width=16, depth=1, condition="class", self_condition=True, sampler={"name": "heun", "steps": 3}
    )
    model = build(config, RepMLP, Space((4,)), Space((), vocab=3)).requires_grad_(False)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    guided = {"guidance": config.guidance.model_copy(update={"scale": 2.0})}
    both = model.sample(torch.tensor([0, 1]), Streams(0, range(2), "t"), **guided)
    alone = model.sample(torch.tensor([1]), Streams(0, [1], "t"), **guided)
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-4)
