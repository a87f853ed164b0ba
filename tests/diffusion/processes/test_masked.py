"""The masked-token process: shares of masked tokens, the loss, and the levels of sampling."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from rcg.core.contracts import MASK, Level
from rcg.diffusion.processes.masked import MaskDraws, Masked, MaskedConfig

UNIFORM = torch.zeros(9)


def constant(logits):
    """A network that answers with the same logits `(K,)` everywhere."""

    def net(x, t, cond):
        return logits[:, None, None].expand(len(x), 1, -1, *x.shape[1:])

    return net


def test_shares_of_masked_tokens_follow_the_published_distribution(data):
    torch.manual_seed(0)
    share = Masked(MaskedConfig()).draw(torch.zeros(100_000, 1)).share
    tables = load_file(data / "schedules.safetensors")
    quantiles = tables["out/mage_mask_ratio_quantiles"].float()
    torch.testing.assert_close(share.quantile(torch.arange(1, 100) / 100), quantiles, atol=4e-3, rtol=0)
    assert 0.5 <= share.min() <= share.max() <= 1
    assert (share > 0.9).float().mean().item() == pytest.approx(0.17, abs=0.01)


def test_every_sample_has_its_own_share_of_masked_tokens():
    process = Masked(MaskedConfig())
    x = torch.randint(9, (4, 4, 4))
    share = torch.tensor([0.5, 0.51, 0.9999, 1.0])
    corrupted = process.corrupt(x, MaskDraws(share, torch.rand(4, 4, 4)))
    masked = corrupted == MASK
    assert masked.flatten(1).sum(1).tolist() == [8, 9, 16, 16]
    assert torch.equal(corrupted[~masked], x[~masked])


def test_the_first_in_order_are_masked_even_if_all_draws_are_equal():
    process = Masked(MaskedConfig())
    x, order = torch.zeros(1, 2, 4, dtype=torch.long), torch.tensor([[[0.9, 0.1, 0.8, 0.2], [0.7, 0.3, 0.6, 0.4]]])
    assert (process.corrupt(x, MaskDraws(torch.tensor([0.5]), order)) == MASK).flatten().tolist() == [
        0,
        1,
        0,
        1,
        0,
        1,
        0,
        1,
    ]
    assert (process.corrupt(x, MaskDraws(torch.tensor([0.5]), 0 * order)) == MASK).sum() == 4


@pytest.mark.parametrize("tokens", [16, 49, 100, 256])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.55, 0.7])
def test_at_least_as_many_tokens_are_masked_as_a_network_may_drop(tokens, ratio):
    config = MaskedConfig(ratio_min=ratio)
    x = torch.zeros(1, tokens, dtype=torch.long)
    corrupted = Masked(config).corrupt(x, MaskDraws(torch.tensor([ratio]), torch.rand(1, tokens)))
    assert (corrupted == MASK).sum() >= config.fewest_masked(tokens)


def test_the_loss_is_the_smoothed_cross_entropy_of_masked_tokens_alone(monkeypatch):
    process = Masked(MaskedConfig(label_smoothing=0.2))
    x = torch.tensor([[[3, 1], [0, 2]]])
    order = torch.tensor([[[0.1, 0.9], [0.2, 0.8]]])
    monkeypatch.setattr(process, "draw", lambda x: MaskDraws(torch.tensor([0.5]), order))
    logits = torch.tensor([2.0, -1.0, 0.5, 1.0])
    log_p = logits.log_softmax(0)
    expected = -(0.8 * (log_p[3] + log_p[0]) / 2 + 0.2 * log_p.mean())  # tokens 3 and 0 are masked
    torch.testing.assert_close(process.loss(constant(logits), x, None)["cross_entropy"], expected)


def test_equal_logits_cost_the_logarithm_of_the_vocabulary():
    x = torch.randint(9, (5, 4, 4))
    loss = Masked(MaskedConfig(label_smoothing=0.0)).loss(constant(UNIFORM), x, None)["cross_entropy"]
    assert loss.item() == pytest.approx(math.log(9))


def test_the_loss_of_logits_in_half_precision_is_in_full_precision():
    x = torch.randint(9, (5, 4, 4))
    loss = Masked(MaskedConfig()).loss(constant(UNIFORM.bfloat16()), x, None)["cross_entropy"]
    assert loss.dtype == torch.float32


def test_the_network_gets_the_time_at_which_sampling_has_masked_as_much(monkeypatch):
    process = Masked(MaskedConfig())
    level = process.levels(10)[3]
    monkeypatch.setattr(process, "draw", lambda x: MaskDraws(torch.tensor([level.sigma]), torch.rand(1, 2, 2)))
    times = []

    def net(x, t, cond):
        times.append(t)
        return constant(UNIFORM)(x, t, cond)

    process.loss(net, torch.zeros(1, 2, 2, dtype=torch.long), None)
    assert times[0].item() == pytest.approx(level.t)


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_sampling_starts_with_everything_masked_and_ends_with_nothing(steps):
    levels = Masked(MaskedConfig()).levels(steps)
    assert len(levels) == steps + 1
    assert levels[0] == Level(1.0, 0.0, 1.0)
    assert levels[-1] == Level(0.0, 1.0, 0.0)
    shares = torch.tensor([level.sigma for level in levels], dtype=torch.float64)
    torch.testing.assert_close(shares, torch.cos(torch.linspace(0, math.pi / 2, steps + 1, dtype=torch.float64)))
    assert F.relu(shares.diff()).sum() == 0
