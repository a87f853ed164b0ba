"""Parallel decoding: against recorded draws, the published rule written out, and known distributions."""

import math

import pytest
import torch

from rcg.config import GuidanceConfig
from rcg.core.contracts import MASK, Space
from rcg.core.registry import SAMPLERS
from rcg.core.rng import SampleNoise
from rcg.diffusion.processes.masked import Masked, MaskedConfig
from rcg.diffusion.samplers import maskgit
from rcg.diffusion.samplers.maskgit import MaskGIT, draw, gumbel, mask_again
from rcg.encoding.autoencoder import restore_autoencoder
from tests.ideal import DISCRETE, BatchNoise
from tests.parity import recorded
from tests.recorded_mage import converted, published

SPACE = Space((4, 4), vocab=5)
PROCESS = Masked(MaskedConfig())


def toy(x, t, cond):
    """Any function of the tokens, and of the condition if there is one, will do for a network."""
    symbols = torch.arange(5.0).view(1, 5, 1, 1)
    shift = 0 if cond is None else cond.view(-1, 1, 1, 1)
    return torch.sin(symbols * (x[:, None] + 2) + x.float().mean((1, 2)).view(-1, 1, 1, 1) + shift)[:, None] * 2


@pytest.mark.parametrize("arm", ["cfg0", "cfg6"])
def test_decoding_equals_the_published_one(arm, monkeypatch):
    about, tensors = recorded(f"mage_gen_{arm}")
    config, m = about["config"], published().eval()
    ids = iter(tensors["aux/categorical_samples"].view(-1, 2, 16, 16))
    noise = iter(tensors["aux/gumbel"].float().view(-1, 2, 16, 16))
    monkeypatch.setattr(maskgit, "draw", lambda log_p, uniform: next(ids))
    monkeypatch.setattr(maskgit, "gumbel", lambda uniform: next(noise))
    sampler = MaskGIT(choice_temperature=config["choice_temperature"], steps=config["num_iter"])
    seen = []
    m.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    guidance = GuidanceConfig(scale=1 + config["cfg"], ramp="linear")
    with torch.no_grad():
        sample = m.sample(tensors["in/rep"], BatchNoise(2), guidance=guidance, sampler=sampler)
    masks = [(x == MASK).flatten(1).sum(1).tolist() for x in seen]
    halves = 1 if config["cfg"] == 0 else 2
    assert masks == [[math.floor(256 * math.cos(math.pi / 2 * s / 8))] * 2 * halves for s in range(8)]
    with torch.no_grad():
        image = restore_autoencoder(converted()[1]).decode(sample)
    recorded_image = tensors["out/image"].clamp(0, 1)
    torch.testing.assert_close(image.flatten()[::14], recorded_image, atol=1e-4, rtol=1e-4)


def by_the_published_rule(net, draws, steps, temperature):
    """Decode one sample `(4, 4)` as published, one token at a time; `draws` are those of `SampleNoise.uniform`."""
    x = [MASK] * 16
    for step in range(steps):
        logits = net(torch.tensor(x).view(1, 4, 4), None, None)[0, 0].flatten(1).double()  # (K, 16)
        p, done = logits.softmax(0), (step + 1) / steps
        ids, confidence = list(x), [math.inf] * 16
        for n in [n for n in range(16) if x[n] == MASK]:
            uniform, choice = draws[step, :, n // 4, n % 4].double()
            ids[n] = int((p[:, n].cumsum(0) <= uniform).sum())
            confidence[n] = math.log(p[ids[n], n]) - temperature * (1 - done) * math.log(-math.log(choice))
        left = max(1, min(x.count(MASK) - 1, math.floor(16 * math.cos(math.pi / 2 * done))))
        again = sorted(range(16), key=lambda n: confidence[n])[:left]
        x = [MASK if n in again else ids[n] for n in range(16)]
    return torch.tensor(ids).view(4, 4)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 16, 20, 40])
def test_every_sample_is_decoded_by_the_published_rule(steps):
    sampler = MaskGIT(steps=steps, choice_temperature=2.0)
    drawn = sampler(PROCESS, toy, SPACE, None, SampleNoise(0, range(6), "t"))
    draws = SampleNoise(0, range(6), "t").uniform((steps, 2, 4, 4))
    expected = [by_the_published_rule(toy, draws[i], steps, 2.0) for i in range(6)]
    assert torch.equal(drawn, torch.stack(expected))


@pytest.mark.parametrize("name", DISCRETE)
def test_a_sample_does_not_depend_on_its_batch(name):
    sampler = SAMPLERS.get(name)(steps=10)
    together = sampler(PROCESS, toy, SPACE, None, SampleNoise(3, range(6), "test"))
    assert torch.equal(together[4:5], sampler(PROCESS, toy, SPACE, None, SampleNoise(3, [4], "test")))
    assert not torch.equal(together[4], together[5])


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("steps", [1, 2, 7, 16, 50])
def test_any_number_of_steps_fills_every_token_and_evaluates_as_often(name, steps):
    calls = []

    def net(x, t, cond):
        calls.append((x == MASK).flatten(1).sum(1))
        return toy(x, t, cond)

    drawn = SAMPLERS.get(name)(steps=steps)(PROCESS, net, SPACE, None, BatchNoise(3))
    assert len(calls) == steps
    assert (calls[0] == 16).all()
    assert (torch.stack(calls) >= 1).all()
    assert 0 <= drawn.min() <= drawn.max() < 5


def test_known_tokens_stay_and_each_sample_fills_its_own_number():
    known = torch.randint(5, (4, 4, 4))
    known[0] = MASK
    known[1, :2] = MASK
    known[2, 3, 3] = MASK
    calls = []

    def net(x, t, cond):
        calls.append((x == MASK).flatten(1).sum(1).tolist())
        return toy(x, t, cond)

    drawn = MaskGIT(steps=4)(PROCESS, net, SPACE, None, BatchNoise(4), known)
    assert (drawn != MASK).all()
    assert torch.equal(drawn[known != MASK], known[known != MASK])
    # floor(count cos(pi s / 8)), and at least one as long as there is one
    assert calls == [[16, 8, 1, 0], [14, 7, 1, 0], [11, 5, 1, 0], [6, 3, 1, 0]]


def test_the_number_masked_again_does_not_depend_on_the_first_sample():
    unknown = torch.zeros(2, 1, 8, dtype=torch.bool)
    unknown[0, 0, :2] = True
    unknown[1] = True
    confidence = torch.arange(16.0).view(2, 1, 8)
    masked = mask_again(confidence, unknown, torch.tensor([6.9, 6.9]))
    assert masked[0, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert masked[1, 0].tolist() == [1, 1, 1, 1, 1, 1, 0, 0]


def test_tokens_are_drawn_from_their_distribution():
    p = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.3])
    drawn = draw(p.log().expand(50_000, 5), BatchNoise(50_000).uniform(()))
    torch.testing.assert_close(drawn.bincount(minlength=5) / 50_000, p, atol=0.01, rtol=0)
    edges = torch.tensor([0.0, 0.4999, 0.5001, 1 - 2**-24])
    assert draw(p.log().expand(4, 5), edges).tolist() == [1, 1, 2, 4]


def test_temperature_sharpens_the_distribution():
    def net(x, t, cond):
        return torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]).view(1, 1, 5, 1, 1).expand(len(x), 1, 5, 4, 4)

    share = {}
    for temperature in (1.0, 0.5):
        drawn = MaskGIT(steps=1, temperature=temperature)(PROCESS, net, SPACE, None, BatchNoise(2000))
        share[temperature] = (drawn == 1).float().mean().item()
    assert share[1.0] == pytest.approx(math.e / (4 + math.e), abs=0.01)
    assert share[0.5] == pytest.approx(math.e**2 / (4 + math.e**2), abs=0.01)


def test_gumbel_draws_are_gumbel_and_finite():
    drawn = gumbel(BatchNoise(200_000).uniform(()))
    assert drawn.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert drawn.var().item() == pytest.approx(math.pi**2 / 6, rel=0.02)
    assert torch.isfinite(gumbel(torch.tensor([0.0, 1 - 2**-24]))).all()
