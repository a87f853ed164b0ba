"""Classifier guidance by a linear probe, against a closed form."""

import pytest
import torch

from rcg.core.contracts import Space
from rcg.diffusion.guidance import ClassifierGuided
from rcg.diffusion.processes.flow import Flow, FlowConfig
from rcg.diffusion.processes.gaussian import Gaussian, GaussianConfig
from rcg.diffusion.samplers.ddim import DDIM
from rcg.metrics.probe import LinearProbe
from tests.ideal import BatchNoise

PROCESSES = {
    **{predict: Gaussian(GaussianConfig(schedule="linear", predict=predict)) for predict in ("x0", "eps", "v")},
    "flow": Flow(FlowConfig()),
}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_guided_gaussian_data_has_the_mean_of_the_posterior(process):
    # Data N(0, 1) and p(y = 1 | x) = sigmoid(a x): the posterior's mean is E[x sigmoid(a x)] / E[sigmoid(a x)].
    a = 0.8
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-(grid**2) / 2) * torch.sigmoid(a * grid)
    expected = float((grid * weight).sum() / weight.sum())
    probe = LinearProbe(torch.tensor([[0.0], [a]]), torch.zeros(2))
    count = 20_000

    def net(x, t, cond):
        alpha, sigma = (scale[:, None] for scale in process.scales(t))
        power = alpha**2 + sigma**2
        x0, eps = alpha * x / power, sigma * x / power
        return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "velocity": eps - x0}[process.predicts][:, None]

    guided = ClassifierGuided(process, probe, torch.ones(count, dtype=torch.long), scale=1.0)
    x = DDIM(steps=200, eta=1.0)(guided, net, Space((1,)), None, BatchNoise(count))
    assert x.mean().item() == pytest.approx(expected, rel=0.1)
    unguided = ClassifierGuided(process, probe, torch.ones(count, dtype=torch.long), scale=0.0)
    x = DDIM(steps=50)(unguided, net, Space((1,)), None, BatchNoise(count))
    assert x.mean().item() == pytest.approx(0, abs=0.03)


def test_a_probe_learns_linear_classes():
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    z = 3 * torch.eye(3)[labels] + 0.3 * torch.randn(300, 3)
    probe = LinearProbe.fit(z, labels)
    assert (probe.log_probability(z).argmax(1) == labels).all()
    torch.testing.assert_close(probe.log_probability(z).exp().sum(1), torch.ones(300))
