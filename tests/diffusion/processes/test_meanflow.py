"""Mean flows against the closed form of a Gaussian, whose flow moves points on known curves."""

import pytest
import torch

from rcg.core.contracts import Interface, Level, Space
from rcg.core.errors import UserError
from rcg.core.registry import GENERATORS, NETWORKS, SAMPLERS
from rcg.core.rng import batch_draws
from rcg.diffusion.inversion import invert
from rcg.diffusion.model import build
from rcg.diffusion.processes.flow import Flow, FlowConfig
from rcg.diffusion.processes.gaussian import Gaussian, GaussianConfig
from rcg.diffusion.processes.meanflow import MeanFlow, MeanFlowConfig
from tests.ideal import MEAN, SPACE, STD, BatchNoise, ideal
from tests.small import GENERATOR, PIXELS

PREDICTIONS = ["velocity", "x0"]


def path(x, t, r, std):
    """Return where the flow of N(MEAN, std^2) takes `x` from time t to time r, both `(B, 1)`.

    The flow keeps a point's distance from the mean in units of the standard deviation at each time.
    """
    scale = (((1 - r) ** 2 * std**2 + r**2) / ((1 - t) ** 2 * std**2 + t**2)).sqrt()
    return (1 - r) * MEAN + scale * (x - (1 - t) * MEAN)


def velocity(x, t, std):
    """Return the velocity of that flow at `x`, the derivative of `path`."""
    slope = (t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2)
    return -MEAN + slope * (x - (1 - t) * MEAN)


def exact(predict, std=STD):
    """The network that knows the flow of N(MEAN, std^2)."""

    def net(x, times, cond):
        t, span = (times[:, :1] / 1000).double(), (times[:, 1:] / 1000).double()
        far = span > 1e-9
        mean = torch.where(
            far, (x - path(x, t, t - span, std)) / torch.where(far, span, 1), velocity(x.double(), t, std)
        )
        return (mean if predict == "velocity" else x - t * mean).to(x.dtype)[:, None]

    return net


def pairs():
    """Return points `(B, 4)` and times `(B, 2)`, all in double precision."""
    generator = torch.Generator().manual_seed(0)
    times = torch.tensor([[1000.0, 1000], [900, 300], [500, 500], [400, 0], [60, 10]], dtype=torch.float64)
    return torch.randn(len(times), 4, generator=generator, dtype=torch.float64), times


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_the_target_of_training_is_the_mean_velocity_of_the_flow(predict):
    process, net = MeanFlow(MeanFlowConfig(predict=predict)).double(), exact(predict)
    x, times = pairs()
    t, span = times[:, :1] / 1000, times[:, 1:] / 1000
    rate = process.rate(net, x, times, None, torch.full_like(x, torch.nan))  # the sample's velocity is not used
    target = velocity(x, t, STD) - span * rate
    mean = torch.where(span > 0, (x - path(x, t, t - span, STD)) / span, velocity(x, t, STD))
    torch.testing.assert_close(target, mean.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("tangent", ["network", "sample"])
def test_the_derivative_is_taken_along_the_velocity_asked_for(tangent):
    process = MeanFlow(MeanFlowConfig(tangent=tangent)).double()
    x, times = pairs()
    sample = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def net(x, times, cond):
        return torch.sin(x * times[:, :1] / 300 + times[:, 1:] / 200)[:, None]

    v = torch.sin(x * times[:, :1] / 300) if tangent == "network" else sample
    slope = torch.cos(x * times[:, :1] / 300 + times[:, 1:] / 200)
    expected = slope * (v * times[:, :1] / 300 + x * 1000 / 300 + 1000 / 200)
    torch.testing.assert_close(process.rate(net, x, times, None, sample).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tangent", ["network", "sample"])
@pytest.mark.parametrize("predict", PREDICTIONS)
def test_the_exact_mean_velocity_of_one_point_has_no_loss(predict, tangent):
    process = MeanFlow(MeanFlowConfig(predict=predict, tangent=tangent, leaps=0.5, time_mean=1, balance=0))
    x = torch.full((64, 4), MEAN)
    torch.manual_seed(0)
    assert process.loss(exact(predict, std=0.0), x, None)["mse"].item() < 1e-6


def test_the_loss_is_smallest_for_the_exact_mean_velocity():
    process = MeanFlow(MeanFlowConfig(leaps=1.0, balance=0))
    losses = []
    for tilt in (-0.1, 0.0, 0.1):

        def net(x, times, cond, tilt=tilt):
            return exact("velocity")(x, times, cond) + tilt * (times[:, 1:] / 1000 * x)[:, None]

        torch.manual_seed(0)
        losses.append(process.loss(net, MEAN + STD * torch.randn(20_000, 1), None)["mse"].item())
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_one_step_maps_noise_exactly_to_data(predict, steps):
    process = MeanFlow(MeanFlowConfig(predict=predict))
    sampler = SAMPLERS.get("ddim")(steps=steps)
    x = sampler(process, exact(predict), SPACE, None, BatchNoise(8))
    torch.testing.assert_close(x, MEAN + STD * BatchNoise(8).normal((4,)), atol=1e-5, rtol=0)
    if steps == 1:
        return  # at pure noise, the noise that a prediction contains is what it was made from
    back = invert(process, exact(predict), x, None, sampler.levels(process), iterations=40)
    torch.testing.assert_close(back, BatchNoise(8).normal((4,)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("sampler", [{"name": "unipc"}, {"name": "heun"}, {"name": "ddim", "eta": 1.0}])
def test_other_samplers_integrate_its_velocities(sampler):
    sampler = SAMPLERS.get(sampler["name"])(**sampler, steps=8)
    flow, process = Flow(FlowConfig()), MeanFlow(MeanFlowConfig())
    expected = sampler(flow, ideal(flow), SPACE, None, BatchNoise(8))
    torch.testing.assert_close(sampler(process, exact("velocity"), SPACE, None, BatchNoise(8)), expected)


def test_a_level_of_another_process_ends_where_that_one_does():
    process, gaussian = MeanFlow(MeanFlowConfig()), Gaussian(GaussianConfig())
    start, end = gaussian.levels(2, "trailing")[:2]
    level = process.matching(start._replace(end=end))
    assert level.end == process.matching(end)
    times = process.network_times(level, 2, torch.device("cpu"))
    torch.testing.assert_close(times, torch.tensor([[level.t, level.t - level.end.t]] * 2))
    assert process.matching(Level(0, 1.0, 0.0)).end is None


@pytest.mark.parametrize("share", [0.25, 0.3, 1.0])
def test_a_share_of_the_samples_spans_time_whatever_the_parts_of_a_batch(share):
    process, seen, last = MeanFlow(MeanFlowConfig(leaps=share)), [], []

    def net(x, times, cond):
        seen.append(times)
        return torch.zeros_like(x)[:, None]

    for first, count in ((0, 12), (0, 6), (6, 6)):
        with batch_draws(3, first, count, 12):
            process.loss(net, torch.zeros(count, 4), None)
        last.append(seen[-1])  # the evaluation with gradients
    whole = last[0]
    assert torch.equal(whole, torch.cat(last[1:]))
    assert (whole[:, 1] > 0).float().mean().item() == pytest.approx(share, abs=1 / 12)
    assert (whole[:, 1] <= whole[:, 0]).all()


def test_a_part_of_a_batch_without_a_leap_has_a_loss():
    network = NETWORKS.get("rep_mlp")
    m = build(network.Config(width=32, depth=1, process={"name": "meanflow"}), network, Space((4,)), None)
    with batch_draws(3, 1, 2, 12):  # of twelve samples, those at the places 0, 4 and 8 leap
        assert torch.isfinite(m(torch.ones(2, 4), None)["mse"])


def test_balanced_errors_count_alike_in_training_and_as_they_are_in_evaluation():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    values = {}
    for balance in (0.0, 1.0):
        for training in (True, False):
            process = MeanFlow(MeanFlowConfig(balance=balance)).train(training)
            torch.manual_seed(0)
            values[balance, training] = process.loss(lambda x, t, c: 3 * x[:, None], x, None)["mse"].item()
    assert values[0.0, True] == values[0.0, False] == values[1.0, False] > 2
    assert values[1.0, True] == pytest.approx(1, abs=0.01)


def trained_flow(registry, name, data, **config):
    """Return a new model of a flow with random weights, and one of a mean flow that starts with them."""
    network = registry.get(name)
    models = []
    for process in ("flow", "meanflow"):
        torch.manual_seed(len(models))
        predict = {"name": process, "predict": "x0"}
        models.append(build(network.Config(process=predict, condition="none", **config), network, data, None))
    for p in models[0].parameters():
        torch.nn.init.normal_(p, std=0.1)
    missing = models[1].load_state_dict(models[0].state_dict(), strict=False).missing_keys
    assert missing
    assert all(".span." in key for key in missing)
    return models


@pytest.mark.parametrize(
    ("registry", "name", "data"),
    [
        *((GENERATORS, name, PIXELS) for name in ("dit", "adm", "ldm")),
        *((NETWORKS, name, Space((6,))) for name in NETWORKS.names()),
    ],
)
def test_a_trained_flow_becomes_a_mean_flow_without_a_jump(registry, name, data):
    small = GENERATOR.get(name, {}) if registry is GENERATORS else {"width": 32, "depth": 3}
    flow, mean_flow = trained_flow(registry, name, data, **small)
    x, t = torch.randn(3, *data.shape), torch.tensor([0.0, 500.0, 1000.0])
    with torch.no_grad():
        expected = flow.eval().network(x, t)
        for span in (0.0, 0.4):
            torch.testing.assert_close(mean_flow.eval().network(x, torch.stack([t, span * t], dim=1)), expected)
    torch.nn.init.normal_(mean_flow.network.time.span[2].weight, std=0.1)
    assert not torch.allclose(mean_flow.network(x, torch.stack([t, t], dim=1)), expected)


def test_a_network_of_one_time_is_refused(monkeypatch):
    network = GENERATORS.get("dit")
    config = network.Config(condition="none", process={"name": "meanflow"})
    monkeypatch.setattr(network, "capabilities", frozenset())
    with pytest.raises(UserError, match="dit takes one time, but the process meanflow has two"):
        build(config, network, PIXELS, None)
    assert Interface(PIXELS).times == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"loss": "l1"}, "a mean flow measures squared errors of velocities"),
        ({"measure": "eps"}, "a mean flow measures squared errors of velocities"),
        ({"predict": "v"}, "predict"),
        ({"leaps": 0}, "leaps"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        MeanFlowConfig(**settings)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"self_condition": True}, "set self_condition to false"),
        ({"perceptual": {}}, "leave perceptual out"),
        ({"early_exit": {}}, "leave early_exit out"),
    ],
)
def test_what_needs_estimates_of_clean_data_is_refused(option, sentence):
    with pytest.raises(ValueError, match=sentence):
        GENERATORS.get("dit").Config(process={"name": "meanflow"}, **option)
