"""Autoguidance against closed forms: a weak model of any kind means the same estimate of clean data."""

import numpy as np
import pytest
import torch

from rcg.config import GuidanceConfig
from rcg.core.contracts import MASK, Level, Space
from rcg.core.errors import UserError
from rcg.core.rng import SampleNoise
from rcg.diffusion.guidance import Autoguided, scale_at
from rcg.diffusion.model import GenerativeModel, build
from rcg.diffusion.networks.rep_mlp import RepMLP, RepMLPConfig
from rcg.diffusion.processes.flow import Flow, FlowConfig
from rcg.diffusion.processes.gaussian import Gaussian, GaussianConfig
from rcg.diffusion.samplers.ddim import DDIM
from tests.ideal import MEAN, SPACE, STD, ideal
from tests.models import mage

WEAK_MEAN, WEAK_STD = 0.3, 0.9
KINDS = {
    "eps": Gaussian(GaussianConfig(predict="eps")),
    "x0, sqrt-linear": Gaussian(GaussianConfig(schedule="sqrt_linear", predict="x0")),
    "v, cosine": Gaussian(GaussianConfig(schedule="cosine", predict="v")),
    "v, 250 levels": Gaussian(GaussianConfig(schedule="linear", predict="v", steps=250)),
    "x0, pure noise": Gaussian(GaussianConfig(predict="x0", zero_terminal_snr=True)),
    "learned variance": Gaussian(GaussianConfig(schedule="cosine", variance="learned_range")),
    "flow": Flow(FlowConfig()),
    "shifted flow": Flow(FlowConfig(shift=3.0)),
}


def estimate(x, alpha, sigma, mean, std):
    """E[x0 | x_t] for data N(mean, std^2)."""
    return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)


def weak_net(process):
    """The exact network of N(WEAK_MEAN, WEAK_STD^2), at levels between those of training too."""

    def net(x, t, cond):
        if isinstance(process, Flow):
            alpha, sigma = (float(scale) for scale in process.scales(t[0].double()))
        else:
            angles = np.arctan2(np.sqrt(1 - process.alpha_bar), np.sqrt(process.alpha_bar))
            angle = np.interp(float(t[0]), np.arange(process.steps), angles)
            alpha, sigma = np.cos(angle), np.sin(angle)
        x0 = estimate(x, alpha, sigma, WEAK_MEAN, WEAK_STD)
        eps = (x - alpha * x0) / sigma
        output = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "velocity": eps - x0}[process.predicts]
        return torch.stack([output] * process.outputs, dim=1)

    return net


@pytest.mark.parametrize("weak", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("strong", KINDS.values(), ids=KINDS)
def test_a_weak_model_of_any_kind_is_read_as_clean_data_at_the_same_level(strong, weak):
    x, config = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], GuidanceConfig(scale=2.5)
    guided = Autoguided(strong, weak, weak_net(weak), config, 8)
    for level in strong.levels(8, "trailing")[1:-1]:
        net = ideal(strong)
        x0, eps, _ = guided.predict(lambda *a, net=net: torch.cat([net(*a)] * strong.outputs, 1), x, level, None)
        better, worse = (
            estimate(x, level.alpha, level.sigma, mean, std) for mean, std in ((MEAN, STD), (WEAK_MEAN, WEAK_STD))
        )
        torch.testing.assert_close(x0, worse + 2.5 * (better - worse), atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(level.alpha * x0 + level.sigma * eps, x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_matches_its_own_levels_and_the_ratios_of_all_others(kind):
    process = KINDS[kind]
    for other in KINDS.values():
        for level in other.levels(7, "trailing")[1:-1]:
            matched = process.matching(level)
            assert matched.half_log_snr == pytest.approx(level.half_log_snr, rel=1e-6, abs=1e-9)
    for level in process.levels(7, "trailing")[:-1]:
        assert process.matching(level)[:3] == pytest.approx(level[:3], rel=1e-9, abs=1e-9)
    noise, clean = (process.matching(level) for level in (Level(0, 0.0, 1.0), Level(0, 1.0, 0.0)))
    assert noise == process.levels(1, "trailing")[0]
    assert clean.sigma <= process.levels(2, "trailing")[1].sigma


def rdm(cond=None, seed=0, dim=4, **config):
    torch.manual_seed(seed)
    settings = {"width": 16, "depth": 1, "condition": "class" if cond else "none"}
    model = build(RepMLPConfig(**settings | config), RepMLP, Space((dim,), id="z"), cond).requires_grad_(False)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def sampled(model, weak, scale=2.0, **guidance):
    config = GuidanceConfig(scale=scale, **guidance)
    cond = None if model.cond is None else torch.arange(3)
    return model.sample(cond, SampleNoise(0, range(3), "t"), guidance=config, sampler=DDIM(steps=5), weak=weak)


def test_samples_are_the_same_whatever_the_weak_model_predicts():
    strong, results = rdm(), []
    for weak in KINDS.values():
        model = GenerativeModel(strong.config, weak_net(weak), weak, strong.data, None)
        results.append(sampled(strong, model))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=0.02, rtol=0.02)
    assert (results[0] - sampled(strong, None)).abs().max() > 0.05


def test_a_weak_model_of_the_same_kind_is_extrapolated_from_in_what_both_predict():
    strong, weak = rdm(), rdm(seed=1)

    def guided(x, t, cond):
        better, worse = strong.network(x, t, cond), weak.network(x, t, cond)
        return worse + 2 * (better - worse)

    expected = DDIM(steps=5)(strong.process, guided, strong.data, None, SampleNoise(0, range(3), "t"))
    torch.testing.assert_close(sampled(strong, weak), expected, atol=1e-3, rtol=1e-3)


def test_guidance_away_from_a_weak_model_keeps_to_its_interval():
    strong, weak = rdm(), rdm(seed=1)
    assert torch.equal(sampled(strong, weak, interval=(0.0, 0.0)), sampled(strong, None))
    assert torch.equal(sampled(strong, weak, scale=1.0), sampled(strong, None))


@pytest.mark.parametrize("strong_sees", [True, False])
@pytest.mark.parametrize("weak_sees", [True, False])
def test_each_model_sees_its_own_estimate(strong_sees, weak_sees):
    # A model that ignores its estimate is the same function with and without self-conditioning.
    plain, results = (rdm(), rdm(seed=1)), []
    models = []
    for model, sees in zip(plain, (strong_sees, weak_sees), strict=True):
        other = rdm(self_condition=sees)
        other.load_state_dict(model.state_dict() | {"network.input.weight": other.network.input.weight.zero_()})
        other.network.input.weight[:, :4] = model.network.input.weight
        models.append(other)
    results = [sampled(*plain), sampled(*models)]
    torch.testing.assert_close(*results)


def test_each_estimate_is_that_of_the_model_that_made_it():
    strong, weak, shown = rdm(self_condition=True), rdm(seed=1, self_condition=True), []
    for model in (strong, weak):
        model.network.register_forward_pre_hook(lambda module, args: shown.append((module, args[0].chunk(2, 1)[1])))
    sampled(strong, weak)
    of_strong, of_weak = ([x for module, x in shown if module is model.network] for model in (strong, weak))
    assert len(of_strong) == len(of_weak) == 5
    assert of_strong[0].abs().max() == of_weak[0].abs().max() == 0
    assert all(not torch.equal(a, b) for a, b in zip(of_strong[1:], of_weak[1:], strict=True))


def test_tokens_are_guided_in_their_logits(toy_autoencoder):
    strong, weak = mage(dropout=0.0).eval(), mage(dropout=0.0, depth=2).eval()
    options = {"guidance": GuidanceConfig(scale=3.0), "sampler": strong.config.sampler.with_steps(2)}
    with torch.no_grad():
        same = strong.sample(None, SampleNoise(0, range(2), "t"), weak=strong, **options)
        assert torch.equal(same, strong.sample(None, SampleNoise(0, range(2), "t"), sampler=options["sampler"]))
    tokens = torch.full((2, *strong.data.shape), MASK)
    level = strong.process.levels(2)[0]
    guided = Autoguided(strong.process, weak.process, weak.network, options["guidance"], 2)
    with torch.no_grad():
        better, worse = (m.process.predict(m.network, tokens, level, None) for m in (strong, weak))
        logits = guided.predict(strong.network, tokens, level, None)
    scale = scale_at(options["guidance"], level.t, strong.process.horizon, 2)
    assert scale > 1
    torch.testing.assert_close(logits, worse + scale * (better - worse))


@pytest.mark.parametrize(
    ("weak", "sentence"),
    [
        ({"dim": 5}, r"needs data of z \(4,\), but this one has z \(5,\)"),
        ({"cond": Space((), vocab=7, id="labels")}, "needs a condition of no space, but this one has labels"),
    ],
)
def test_a_weak_model_of_something_else_is_refused(weak, sentence):
    with pytest.raises(UserError, match=sentence):
        sampled(rdm(), rdm(**weak))


def test_ideal_models_of_one_distribution_guide_nothing():
    # Both know the data exactly, in other words: every scale gives the same samples.
    strong, weak = KINDS["v, cosine"], KINDS["flow"]
    guided = Autoguided(strong, weak, ideal(weak), GuidanceConfig(scale=50.0), 10)
    one = DDIM(steps=10)(guided, ideal(strong), SPACE, None, SampleNoise(0, range(8), "t"))
    two = DDIM(steps=10)(strong, ideal(strong), SPACE, None, SampleNoise(0, range(8), "t"))
    torch.testing.assert_close(one, two, atol=2e-3, rtol=2e-3)
