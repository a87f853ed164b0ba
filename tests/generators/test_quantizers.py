"""Quantizers against closed forms."""

import math

import pytest
import torch
from pydantic import ValidationError

from rcg.generators.autoencoders._quantizers import FSQ, FSQConfig, Nearest, NearestConfig
from rcg.generators.autoencoders.vqgan import VQGANConfig
from rcg.metrics.image import code_usage, perplexity


def draw(count, channels=3, seed=0):
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed))


def nearest(codebook, **config):
    quantizer = Nearest(NearestConfig(codes=len(codebook), **config), codebook.shape[1])
    quantizer.codebook.data.copy_(codebook)
    quantizer.counts.fill_(1)
    if quantizer.config.update == "ema":
        quantizer.sums.copy_(codebook)
    return quantizer


def test_each_vector_is_replaced_by_its_nearest_entry(monkeypatch):
    monkeypatch.setattr("rcg.generators.autoencoders._quantizers.CHUNK", 7)
    z, codebook = draw(50), draw(20, seed=1)
    quantized, codes, _ = nearest(codebook).eval()(z)
    assert torch.equal(codes, torch.cdist(z, codebook).argmin(1))
    torch.testing.assert_close(quantized, codebook[codes])


def test_gradients_pass_straight_through_and_the_losses_pull_both_sides():
    z, codebook = draw(30).requires_grad_(), draw(8, seed=1)
    quantizer = nearest(codebook, update="gradient", revive=0, commitment=0.25)
    quantized, codes, losses = quantizer(z)
    direction = draw(30, seed=2)
    (through,) = torch.autograd.grad((quantized * direction).sum(), z, retain_graph=True)
    torch.testing.assert_close(through, direction)
    gap = z.detach() - codebook[codes]
    (pulled,) = torch.autograd.grad(losses["commitment"], z, retain_graph=True)
    torch.testing.assert_close(pulled, 0.25 * 2 * gap / gap.numel())
    (moved,) = torch.autograd.grad(losses["codebook"], quantizer.codebook)
    expected = torch.zeros_like(codebook).index_add_(0, codes, -2 * gap / gap.numel())
    torch.testing.assert_close(moved, expected)


def test_the_averaged_codebook_has_its_closed_form():
    # Three batches on fixed assignments: e = sum_t w_t sum(z in code at t) / sum_t w_t count_t, w = decay^(T - t).
    centers = 100 * torch.eye(3)
    quantizer = nearest(centers.clone(), decay=0.8, revive=0).train()
    batches = [centers.repeat(4, 1) + draw(12, seed=s) for s in range(3)]
    sums, counts = centers.clone(), torch.ones(3)
    for z in batches:
        _, codes, losses = quantizer(z)
        assert torch.equal(codes, torch.arange(3).repeat(4))
        assert losses.keys() == {"commitment"}
        sums = 0.8 * sums + 0.2 * z.view(4, 3, 3).sum(0)
        counts = 0.8 * counts + 0.2 * 4
    torch.testing.assert_close(quantizer.codebook, sums / counts[:, None])
    torch.testing.assert_close(quantizer.counts, counts)


def test_the_codebook_starts_on_the_data_and_rests_in_evaluation():
    quantizer, z = Nearest(NearestConfig(codes=4), 3), 50 + draw(100)
    quantizer.eval()(z)
    assert quantizer.codebook.abs().max() < 10
    assert not quantizer.counts.any()
    quantizer.train()(z)
    assert (quantizer.codebook - 50).abs().max() < 5
    before = quantizer.codebook.clone()
    quantizer.eval()(z + 1)
    assert torch.equal(quantizer.codebook, before)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_dead_codes_are_moved_onto_the_data(update):
    codebook = torch.cat([draw(4), 1000 + draw(4)])
    quantizer = nearest(codebook, update=update, decay=0.5, revive=0.1).train()
    z = draw(64, seed=3)
    for _ in range(8):
        quantizer(z)
    assert quantizer.codebook.abs().max() < 10
    codes = quantizer.codes(z)
    assert len(codes.unique()) == 8
    unrevived = nearest(codebook, update=update, decay=0.5, revive=0).train()
    for _ in range(8):
        unrevived(z)
    assert len(unrevived.codes(z).unique()) <= 4


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 3, 4), (7,), (2,)])
def test_every_code_of_finite_scalar_quantization_goes_there_and_back(levels):
    fsq = FSQ(FSQConfig(levels=levels))
    assert fsq.vocab == math.prod(levels)
    everything = torch.arange(fsq.vocab)
    values = fsq.lookup(everything)
    assert len(values.unique(dim=0)) == fsq.vocab
    assert values.abs().max() <= 1
    for channel, count in enumerate(levels):
        assert len(values[:, channel].unique()) == count
    # The z whose bounded value is exactly that level.
    half, reach = fsq.levels // 2, (fsq.levels - 1) * (1 + 1e-3) / 2
    offset = torch.where(fsq.levels % 2 == 0, 0.5, 0.0)
    z = torch.atanh((values * half + offset) / reach) - torch.atanh(offset / reach)
    quantized, codes, losses = fsq(z)
    assert torch.equal(codes, everything)
    assert losses == {}
    torch.testing.assert_close(quantized, values)


def test_finite_scalar_quantization_is_bounded_keeps_zero_and_passes_gradients():
    fsq = FSQ(FSQConfig(levels=(8, 5)))
    torch.testing.assert_close(fsq.bound(torch.zeros(1, 2)), torch.zeros(1, 2), atol=1e-6, rtol=0)
    for extreme, code in ((-1e4, 0), (1e4, fsq.vocab - 1)):
        assert fsq.codes(torch.full((1, 2), extreme)).tolist() == [code]
    z = draw(10, 2).requires_grad_()
    (through,) = torch.autograd.grad(fsq(z)[0].sum(), z)
    (expected,) = torch.autograd.grad((fsq.bound(z) / torch.tensor([4, 2])).sum(), z)
    torch.testing.assert_close(through, expected)


def test_channels_follow_the_levels():
    assert VQGANConfig(quantizer={"name": "fsq", "levels": [8, 8, 5]}).channels == 3
    assert VQGANConfig(quantizer={"codes": 7}).quantizer.codes == 7
    with pytest.raises(ValidationError, match=r"channels is 4, but quantizer\.levels has 3"):
        VQGANConfig(channels=4, quantizer={"name": "fsq", "levels": [8, 8, 5]})


def test_usage_and_perplexity_of_known_counts():
    assert code_usage(torch.tensor([3, 0, 1, 0])) == 0.5
    assert perplexity(torch.full((16,), 5)) == pytest.approx(16)
    assert perplexity(torch.tensor([0, 9, 0])) == pytest.approx(1)
