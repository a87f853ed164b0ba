"""Value residual learning: the values of every block are mixed with those of the first one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rcg.core.contracts import Interface, Space
from rcg.core.errors import UserError
from rcg.core.rng import SampleNoise
from rcg.diffusion.h_space import Asymmetric, h_of
from rcg.generators.dit import DiT, DiTConfig
from rcg.nn import Attention
from tests.models import dit

SMALL = {"width": 8, "depth": 3, "heads": 2, "patch": 4, "value_residual": True}
X, T = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])


def test_two_blocks_of_attention_by_hand():
    first, second = Attention(8, 2), Attention(8, 2, value_residual=True)
    with torch.no_grad():
        second.mix.copy_(torch.tensor([0.3, 0.9]))
    x, y = torch.randn(2, 3, 5, 8)
    _, values = first.with_values(x)
    result, _ = second.with_values(y, first=values)

    def heads_of(attention, tokens):
        """Queries, keys and values of each head `(3, 2, B, N, 4)`, one number at a time."""
        projected = tokens @ attention.qkv.weight.T + attention.qkv.bias
        return [[projected[..., 8 * part + 4 * head :][..., :4] for head in range(2)] for part in range(3)]

    first_values = heads_of(first, x)[2]
    attended = []
    for q, k, own, of_first in zip(*heads_of(second, y), first_values, strict=True):
        weights = (torch.einsum("bnd,bmd->bnm", q, k) / 2).softmax(dim=-1)
        attended.append(torch.einsum("bnm,bmd->bnd", weights, 0.3 * own + 0.9 * of_first))
    torch.testing.assert_close(result, second.proj(torch.cat(attended, dim=-1)))


def test_a_block_starts_with_half_of_each_and_a_new_network_as_the_identity():
    network = DiT(DiTConfig(**SMALL), Interface(Space((3, 8, 8))))
    assert [None if block.attn.mix is None else block.attn.mix.tolist() for block in network.blocks] == [
        None,
        [0.5, 0.5],
        [0.5, 0.5],
    ]
    tokens = torch.randn(2, 4, 8)
    x, values = network.blocks[0](tokens, torch.randn(2, 8))
    assert torch.equal(x, tokens)
    assert torch.equal(network.blocks[1](tokens, torch.randn(2, 8), None, values), tokens)
    assert network(X, T).abs().max() == 0


def test_with_all_of_its_own_values_a_network_is_the_plain_one():
    mixed, plain = dit(**SMALL), dit(**SMALL | {"value_residual": False})
    missing = mixed.network.load_state_dict(plain.network.state_dict(), strict=False)
    assert missing.missing_keys == ["blocks.1.attn.mix", "blocks.2.attn.mix"]
    assert not missing.unexpected_keys
    own = torch.tensor([1.0, 0.0])
    for block in mixed.network.blocks[1:]:
        block.attn.mix = nn.Parameter(own.clone())
    torch.testing.assert_close(mixed.network(X, T), plain.network(X, T))
    mixed.network.blocks[2].attn.mix.data[1] = 1.0
    assert not torch.allclose(mixed.network(X, T), plain.network(X, T))


@pytest.mark.parametrize("options", [{}, {"rotary": True, "qk_norm": True, "norm": "rms"}], ids=["plain", "modern"])
def test_the_mixture_is_learned_and_the_first_block_hears_of_it(options):
    network = dit(**SMALL, **options).network
    F.mse_loss(network(X, T), torch.randn(2, 1, 3, 8, 8)).backward()
    assert all(block.attn.mix.grad.abs().min() > 0 for block in network.blocks[1:])
    with_mix = network.blocks[0].attn.qkv.weight.grad.clone()
    network.zero_grad()
    for block in network.blocks[1:]:
        block.attn.mix.data[1] = 0
    F.mse_loss(network(X, T), torch.randn(2, 1, 3, 8, 8)).backward()
    assert not torch.allclose(network.blocks[0].attn.qkv.weight.grad, with_mix)


def test_the_first_block_is_an_h_space_all_the_same():
    m = dit(**SMALL, sampler={"name": "ddim", "steps": 2}).eval()
    assert h_of(m.network, X, T, None, block=1).shape == (2, 4, 8)

    @torch.no_grad()
    def sample(shift):
        def wrap(process):
            return Asymmetric(process, m.network, lambda seen: shift * torch.eye(8)[0], end=0, block=1)

        return m.sample(None, SampleNoise(0, range(2), "t"), wrap_process=wrap)

    with torch.no_grad():
        plain = m.sample(None, SampleNoise(0, range(2), "t"))
    assert torch.equal(sample(0.0), plain)
    assert not torch.allclose(sample(1.0), plain)


def test_one_block_has_nothing_to_mix_with():
    with pytest.raises(UserError, match=r"generator.value_residual mixes the values of later blocks .* depth is 1"):
        DiT(DiTConfig(**SMALL | {"depth": 1}), Interface(Space((3, 8, 8))))
