"""Network x process x condition: guidance, dropout, and independent random streams."""

import pytest
import torch

from rcg.config import GuidanceConfig
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.rng import SampleNoise, ScaledNoise, fold_seed
from rcg.diffusion.guidance import Guided
from rcg.diffusion.model import build
from rcg.diffusion.processes.gaussian import Gaussian, GaussianConfig
from rcg.diffusion.processes.masked import Masked, MaskedConfig
from rcg.generators.dit import DiT, DiTConfig
from tests.models import dit


def plus(x, t, cond):
    """A network whose output is its condition."""
    return (0 * x + cond)[:, None]


def test_guidance_extrapolates_from_the_null():
    cond, null = torch.full((2, 1), 3.0), torch.full((2, 1), 1.0)
    guided = Guided(plus, null, GuidanceConfig(scale=2.5), horizon=1000)
    assert torch.equal(guided(torch.zeros(2, 1), torch.tensor([10, 10]), cond), torch.full((2, 1, 1), 1 + 2.5 * 2))


@pytest.mark.parametrize(("t", "inside"), [(100, False), (200, True), (500, True), (600, True), (601, False)])
def test_guidance_acts_inside_its_interval_only(t, inside):
    config = GuidanceConfig(scale=2.0, interval=(0.2, 0.6))
    guided = Guided(plus, torch.zeros(1, 1), config, horizon=1000)
    output = guided(torch.zeros(1, 1), torch.tensor([t]), torch.ones(1, 1))
    assert output.item() == (2 if inside else 1)


@pytest.mark.parametrize(
    ("ramp", "shares"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1]),
        ("cosine", [(1 - 0.5**0.5) / 2, 0.5, (1 + 0.5**0.5) / 2, 1]),
    ],
)
@pytest.mark.parametrize("sampler", ["ddim", "maskgit"])
def test_a_ramp_grows_to_the_whole_scale_at_the_last_step(ramp, shares, sampler):
    if sampler == "ddim":
        process, levels = Gaussian(GaussianConfig()), Gaussian(GaussianConfig()).levels(4, "trailing")
    else:
        process, levels = Masked(MaskedConfig()), Masked(MaskedConfig()).levels(4)
    config = GuidanceConfig(scale=3.0, ramp=ramp)
    guided = Guided(plus, torch.zeros(1, 1), config, process.horizon, steps=4)
    scales = [guided(torch.zeros(1, 1), torch.tensor([level.t]), torch.ones(1, 1)).item() for level in levels[:-1]]
    # The first of a thousand levels is not quite all noise.
    assert scales == pytest.approx([1 + 2 * share for share in shares], abs=4e-3 if sampler == "ddim" else 1e-6)


def test_a_ramp_depends_on_the_number_of_steps(monkeypatch):
    m, seen = dit(Space((4,))), []
    scale = Guided.scale
    monkeypatch.setattr(Guided, "scale", lambda self, time: seen.append(scale(self, time)) or seen[-1])
    guidance, sampler = GuidanceConfig(scale=5.0, ramp="linear"), m.config.sampler.with_steps(2)
    m.sample(torch.randn(2, 4), SampleNoise(0, range(2), "t"), guidance=guidance, sampler=sampler)
    assert seen == pytest.approx([3, 5], abs=0.01)


def test_a_scale_of_one_is_the_conditional_model_alone():
    m = dit(Space((4,)))
    cond, sampler = torch.randn(3, 4), m.config.sampler.with_steps(3)
    plain = m.sample(cond, SampleNoise(0, range(3), "t"), guidance=GuidanceConfig(scale=1.0), sampler=sampler)
    calls = []
    m.network.register_forward_hook(lambda *_: calls.append(1))
    again = m.sample(cond, SampleNoise(0, range(3), "t"), sampler=sampler)
    assert torch.equal(plain, again)
    assert len(calls) == 3


@pytest.mark.parametrize("cond", [Space((4,)), Space((), vocab=5)])
def test_dropped_conditions_become_the_null_and_the_null_is_learned(cond, monkeypatch):
    m = dit(cond)
    given = torch.randn(3, 4) if cond.vocab is None else torch.tensor([0, 1, 4])
    monkeypatch.setattr(m, "dropped", lambda c: torch.tensor([False, True, False]))
    replaced = m._drop(given)
    assert torch.equal(replaced[[0, 2]], given[[0, 2]])
    assert torch.equal(replaced[1], m.null_like(given)[1])
    m(torch.randn(3, 3, 8, 8), given)["mse"].backward()
    if cond.vocab is None:
        assert m.null.grad.abs().sum() > 0
    else:
        assert m.network.cond.embed.weight.grad[5].abs().sum() > 0


def test_conditions_are_dropped_at_the_configured_rate():
    m = dit(Space((4,)), condition_dropout=0.25)
    torch.manual_seed(0)
    assert m.dropped(torch.zeros(20_000, 4)).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_representations_are_noised_in_training_and_never_in_sampling():
    m = dit(Space((4,)), condition_dropout=0.0, condition_noise=0.5)
    given, seen = torch.ones(4000, 4), []
    m.network.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    torch.manual_seed(0)
    m(torch.randn(4000, 3, 8, 8), given)
    assert seen[0].mean().item() == pytest.approx(1, abs=0.02)
    assert seen[0].std().item() == pytest.approx(0.5, abs=0.02)
    sampler = m.config.sampler.with_steps(1)
    m.sample(given[:2], SampleNoise(0, range(2), "t"), guidance=GuidanceConfig(scale=1.0), sampler=sampler)
    assert torch.equal(seen[1], given[:2])


def test_labels_are_never_noised():
    m = dit(Space((), vocab=5), condition_dropout=0.0, condition_noise=0.5)
    seen = []
    m.network.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    m(torch.randn(2, 3, 8, 8), torch.tensor([1, 3]))
    assert seen[0].tolist() == [1, 3]


def test_temperature_scales_all_noise():
    plain = dit(sampler={"name": "ddim", "steps": 1})
    warm = dit(sampler={"name": "ddim", "steps": 1, "temperature": 0.5})
    started = []
    for m in (plain, warm):
        m.network.register_forward_pre_hook(lambda module, args: started.append(args[0]))
        m.sample(None, SampleNoise(0, range(2), "t"))
    torch.testing.assert_close(started[1], 0.5 * started[0])


def test_tokens_are_not_kept_by_a_generator_of_real_numbers():
    with pytest.raises(UserError, match=r"dit generates .* cannot keep torch.int64"):
        dit().sample(None, SampleNoise(0, range(1), "t"), known=torch.zeros(1, 2, 2, dtype=torch.long))


def test_a_condition_that_the_neighbors_do_not_offer_is_refused():
    with pytest.raises(UserError, match="condition is 'class'"):
        build(DiTConfig(condition="class"), DiT, Space((3, 8, 8)), None)


def test_streams_depend_on_seed_index_and_use_alone():
    def draw(seed, indices, use):
        return SampleNoise(seed, indices, use).normal((3,))

    assert torch.equal(draw(0, [5, 6], "a")[1], draw(0, [6], "a")[0])

    def uniform(indices):
        return ScaledNoise(SampleNoise(0, indices, "a"), 0.5).uniform((3,))

    assert torch.equal(uniform([5, 6])[1], uniform([6])[0])
    assert 0.5 < uniform(range(100)).max() < 1
    others = [draw(0, [5], "a"), draw(0, [6], "a"), draw(1, [5], "a"), draw(0, [5], "b")]
    assert len({tuple(x.flatten().tolist()) for x in others}) == 4


def test_folding_is_stable_across_versions():
    assert fold_seed(0, "step", 3) == fold_seed(0, "step", 3)
    assert len({fold_seed(a, b) for a in range(20) for b in range(20)}) == 400
    assert all(0 <= fold_seed(a, "x") < 2**63 for a in range(50))


def test_guidance_leaves_the_variance_and_the_channels_beyond_alone():
    def net(x, t, cond):
        return torch.stack([0 * x + cond[:, :, None, None], 5 * cond[:, :, None, None] + 0 * x], dim=1)

    x, t, cond = torch.zeros(2, 4, 3, 3), torch.tensor([10, 10]), torch.full((2, 1), 3.0)
    null = torch.full((2, 1), 1.0)
    guided = Guided(net, null, GuidanceConfig(scale=2.5, channels=3), horizon=1000)(x, t, cond)
    assert torch.equal(guided[:, 0, :3], torch.full((2, 3, 3, 3), 1 + 2.5 * 2))
    assert torch.equal(guided[:, 0, 3], torch.full((2, 3, 3), 3.0))
    assert torch.equal(guided[:, 1], torch.full((2, 4, 3, 3), 15.0))


def test_without_condition_dropout_every_trained_parameter_is_reached():
    m = dit(Space((4,)), condition_dropout=0.0)
    m(torch.randn(3, 3, 8, 8), torch.randn(3, 4))["mse"].backward()
    assert all(p.grad is not None for p in m.parameters() if p.requires_grad)


@pytest.mark.parametrize("scale", [-1, 100.5, 1e38, float("nan"), float("inf")])
def test_a_scale_without_meaning_is_refused(scale):
    with pytest.raises(UserError, match="a scale of guidance lies between 0 and 100"):
        GuidanceConfig().with_scale(scale)
    with pytest.raises(ValueError, match="scale"):
        GuidanceConfig(scale=scale)


def test_another_scale_keeps_interval_ramp_and_channels():
    config = GuidanceConfig(interval=(0.1, 0.5), ramp="cosine", channels=3)
    assert config.with_scale(4.0) == config.model_copy(update={"scale": 4.0})
    assert config.with_scale(None) is config


@pytest.mark.parametrize(
    ("cond", "dropout", "scale", "refused"),
    [
        (Space((4,)), 0.0, 2.0, True),
        (Space((), vocab=5), 0.0, 0.5, True),
        (Space((4,)), 0.0, 1.0, False),
        (Space((4,)), 0.1, 2.0, False),
        (None, 0.0, 2.0, False),
    ],
)
def test_guidance_from_a_null_that_was_never_trained_is_refused_unless_it_is_allowed(cond, dropout, scale, refused):
    config, guidance = dit(cond, condition_dropout=dropout).config, GuidanceConfig(scale=scale)
    config.check_guidance(guidance, allow_untrained_null=True)
    if refused:
        with pytest.raises(UserError, match=r"which was never trained \(condition_dropout 0\): sample at a scale of 1"):
            config.check_guidance(guidance, allow_untrained_null=False)
    else:
        config.check_guidance(guidance, allow_untrained_null=False)
