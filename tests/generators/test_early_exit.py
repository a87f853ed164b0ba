"""The early exit, a worse answer from the middle of a network, and guidance away from it."""

import pytest
import torch
from pydantic import ValidationError

from rcg.comparison.cost import count_rows
from rcg.config import GuidanceConfig
from rcg.core.checkpoint import Facts
from rcg.core.contracts import Interface, Space
from rcg.core.errors import UserError
from rcg.core.registry import GENERATORS
from rcg.core.rng import SampleNoise
from rcg.diffusion.guidance import Guided
from rcg.diffusion.model import model_part, restore
from rcg.diffusion.networks.rep_mlp import RepMLPConfig
from rcg.generators.dit import DiT, DiTConfig
from rcg.pipeline import Pipeline, SamplingOptions
from tests.models import dit
from tests.toy import train, write

EXIT = {"depth": 3, "early_exit": {"block": 2, "weight": 0.25}}
REP = Space((4,))
X, T = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
AWAY = {"scale": 3.0, "against": "early_exit"}


def sample(m, guidance=None, cond=None, steps=3):
    with torch.no_grad():
        noise = SampleNoise(0, range(2), "t")
        return m.eval().sample(cond, noise, guidance=guidance, sampler=m.config.sampler.with_steps(steps))


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_exit_answers_as_a_network_would_that_ends_there(outputs):
    options = {"process": {"name": "gaussian", "variance": "learned_range"}} if outputs == 2 else {}
    m, short, whole = dit(**EXIT, **options), dit(depth=2, **options), dit(depth=3, **options)
    tensors = m.network.state_dict()
    plain = {name: value for name, value in tensors.items() if not name.startswith("early_")}
    whole.network.load_state_dict(plain)
    for name in ("modulation.1.weight", "modulation.1.bias", "output.weight", "output.bias"):
        plain[name] = tensors[f"early_{name}"]
    short.network.load_state_dict({name: value for name, value in plain.items() if "blocks.2." not in name})
    answer = m.network(X, T)
    assert answer.shape == (2, 2 * outputs, 3, 8, 8)
    assert torch.equal(answer[:, :outputs], whole.network(X, T))
    assert torch.equal(answer[:, outputs:], short.network(X, T))


@pytest.mark.parametrize("process", ["gaussian", "flow"])
def test_both_answers_are_judged_alike_and_the_exit_has_its_weight(process):
    m = dit(**EXIT, process={"name": process})
    torch.manual_seed(1)
    losses = m(X, None)
    torch.manual_seed(1)
    t, noise = m.process.draw(X)
    answer, target = m.network(m.process.corrupt(X, t, noise), t), m.process.target(X, t, noise)
    assert losses.keys() == {"mse", "early_mse"}
    torch.testing.assert_close(losses["mse"], (answer[:, 0] - target).square().mean())
    torch.testing.assert_close(losses["early_mse"], 0.25 * (answer[:, 1] - target).square().mean())
    losses["early_mse"].backward()
    assert m.network.early_output.weight.grad.abs().sum() > 0
    assert m.network.blocks[1].mlp.fc1.weight.grad.abs().sum() > 0
    assert m.network.blocks[2].mlp.fc1.weight.grad.abs().sum() == 0


def test_a_learned_variance_has_its_bound_in_both():
    losses = dit(**EXIT, process={"name": "gaussian", "variance": "learned_range"})(X, None)
    assert losses.keys() == {"mse", "vb", "early_mse", "early_vb"}


def test_guidance_extrapolates_from_the_early_answer_in_one_evaluation():
    calls = []

    def net(x, t, cond):
        """Prediction and variance, and those of an early exit."""
        calls.append(cond)
        return torch.stack([0 * x + cond, 0 * x + 5, 0 * x + 1, 0 * x + 7], dim=1)

    guided = Guided(net, None, GuidanceConfig(**AWAY | {"scale": 2.5}), horizon=1000)
    output = guided(torch.zeros(2, 1), torch.tensor([10, 10]), torch.full((2, 1), 3.0))
    assert output[:, :, 0].tolist() == [[1 + 2.5 * 2, 5]] * 2
    assert len(calls) == 1
    outside = GuidanceConfig(**AWAY, interval=(0.2, 0.6))
    output = Guided(net, None, outside, horizon=1000)(torch.zeros(2, 1), torch.tensor([10, 10]), torch.ones(2, 1))
    assert output[:, 0].flatten().tolist() == [1, 1]


@pytest.mark.parametrize("cond", [None, torch.randn(2, 4)], ids=["none", "representation"])
def test_samples_are_those_of_the_extrapolated_prediction(cond):
    m = dit(None if cond is None else REP, **EXIT, sampler={"name": "ddim"})

    def by_hand(x, t, c):
        full, early = m.network(x, t, c).chunk(2, dim=1)
        return early + 3 * (full - early)

    sampler = m.config.sampler.with_steps(3)
    with torch.no_grad():
        expected = sampler(m.process, by_hand, m.data, cond, SampleNoise(0, range(2), "t"))
    guided = sample(m, GuidanceConfig(**AWAY), cond)
    torch.testing.assert_close(guided, expected)
    assert not torch.allclose(guided, sample(m, GuidanceConfig(), cond))


def test_a_scale_of_one_is_the_network_without_an_exit_bit_for_bit():
    m, plain = dit(**EXIT), dit(depth=3)
    tensors = {name: value for name, value in m.state_dict().items() if ".early_" not in name}
    plain.load_state_dict(tensors)
    assert torch.equal(sample(m, GuidanceConfig(**AWAY | {"scale": 1.0})), sample(plain))


def test_no_scale_changes_a_network_whose_early_answer_is_its_last():
    m = dit(**EXIT)
    network = m.network
    for block in network.blocks[2:]:  # the last block is the identity
        block.modulation[1].weight.data.zero_()
        block.modulation[1].bias.data.zero_()
    for name in ("modulation", "output"):
        getattr(network, f"early_{name}").load_state_dict(getattr(network, name).state_dict())
    plain = sample(m, GuidanceConfig())
    for scale in (0.0, 2.0, 50.0):
        assert torch.equal(sample(m, GuidanceConfig(**AWAY | {"scale": scale})), plain)


@pytest.mark.parametrize(("against", "evaluations"), [("early_exit", 3), (None, 6)])
def test_guidance_away_from_the_exit_costs_no_evaluation(against, evaluations):
    m = dit(REP, **EXIT)
    with count_rows([m]) as rows:
        sample(m, GuidanceConfig(scale=3.0, against=against), torch.randn(2, 4))
    assert rows.rows / 2 == evaluations


def test_with_self_conditioning_the_estimate_shown_is_that_of_the_last_answer():
    m = dit(**EXIT, self_condition=True)
    sum(m(torch.randn(4, 3, 8, 8), None).values()).backward()
    assert sample(m, GuidanceConfig(**AWAY)).shape == (2, 3, 8, 8)


def test_activations_that_are_computed_again_change_no_gradient():
    gradients = []
    for recompute in (False, True):
        m = dit(**EXIT, grad_checkpointing=recompute, value_residual=True)
        m.network(X, T).square().sum().backward()
        gradients.append([p.grad for p in m.network.parameters()])
    torch.testing.assert_close(*gradients)


def test_checkpoints_with_and_without_an_exit_are_restored():
    for options in ({}, EXIT):
        m = dit(**options)
        part = model_part("generator", m, Facts())
        for section, key in ((part.config, "early_exit"), (part.config["guidance"], "against")):
            if section[key] is None:
                del section[key]  # as in parts of earlier versions
        restored = restore(part, GENERATORS)
        with torch.no_grad():
            assert torch.equal(restored.network(X, T), m.network(X, T))


def test_an_unconditional_generator_is_trained_and_guided(tmp_path):
    changes = {"early_exit": {"block": 1}, "guidance": {"against": "early_exit"}, "condition": "none"}
    settings = {f"generator__{key}": value for key, value in changes.items()}
    path = write(tmp_path, encoder__weights="none", **settings, generator__train__steps=2)
    stage = train("generator", path)
    assert '"validation_early_mse": ' in stage.log.read_text()
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    plain, guided = (pipeline.generate(range(2), SamplingOptions(guidance=scale)).images for scale in (1.0, 4.0))
    assert not torch.equal(plain, guided)


def test_an_exit_at_the_end_is_refused():
    config = DiTConfig(depth=3, early_exit={"block": 3})
    with pytest.raises(UserError, match=r"early_exit.block is 3, .* of 3 blocks: choose one from 1 to 2"):
        DiT(config, Interface(Space((3, 8, 8))))


@pytest.mark.parametrize("schema", [DiTConfig, RepMLPConfig])
def test_guidance_away_from_an_exit_that_is_not_there_is_refused(schema):
    with pytest.raises(ValidationError, match=r"guidance\.against is early_exit, but .* has none: set it to null"):
        schema(guidance={"against": "early_exit"})
    with pytest.raises(UserError, match=r"guidance\.against is early_exit, but .* has none: set it to null"):
        schema().check_guidance(GuidanceConfig(**AWAY), allow_untrained_null=True)


def test_an_untrained_null_is_no_matter_to_guidance_away_from_the_exit():
    config = DiTConfig(condition="representation", condition_dropout=0.0, early_exit={}, guidance=AWAY)
    config.check_guidance(config.guidance, allow_untrained_null=False)
    assert not list(config.warnings())
