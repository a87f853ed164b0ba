"""The options of DiT's configuration."""

import pytest
import torch
from timm.layers import apply_rot_embed_cat

from rcg.core.contracts import Interface, Space
from rcg.core.errors import UserError
from rcg.generators.dit import DiT, DiTConfig
from rcg.nn import Attention, attend, rotary_positions, sincos_positions
from tests.parity import state

PIXELS, REP = Space((3, 8, 8)), Space((6,))


def test_positions_equal_the_published_ones():
    torch.testing.assert_close(sincos_positions(4, 32)[None], state("dit_tiny_rep")["pos_embed"])


def test_a_new_block_is_the_identity_and_a_new_network_returns_zero():
    network = DiT(DiTConfig(width=32, depth=2, heads=4), Interface(PIXELS, REP))
    x, c = torch.randn(2, 16, 32), torch.randn(2, 32)
    assert torch.equal(network.blocks[0](x, c), x)
    assert network(torch.randn(2, 3, 8, 8), torch.tensor([1, 5]), torch.randn(2, 6)).abs().max() == 0


def test_both_ways_to_compute_attention_agree():
    q, k, v = torch.randn(3, 2, 4, 16, 8)
    with torch.no_grad():
        fused = attend(q, k, v)
    torch.testing.assert_close(attend(q.requires_grad_(), k, v), fused)


@pytest.mark.parametrize(("config", "error"), [({"patch": 3}, "patch is 3"), ({"width": 30}, "width is 30")])
def test_shapes_that_do_not_fit_are_refused(config, error):
    with pytest.raises(UserError, match=error):
        DiT(DiTConfig(**config), Interface(PIXELS))


def test_the_published_sizes_have_their_number_of_parameters():
    # S/2 and XL/2 of the paper on 4 x 32 x 32 latents, with the variance head; the stored positions count too.
    for width, depth, heads, millions in ((384, 12, 6, 32.7), (1152, 28, 16, 674.3)):
        with torch.device("meta"):
            config = DiTConfig(width=width, depth=depth, heads=heads)
            network = DiT(config, Interface(Space((4, 32, 32)), Space((256,)), outputs=2))
        assert sum(p.numel() for p in [*network.parameters(), network.positions]) == pytest.approx(
            millions * 1e6, rel=1e-3
        )


def test_the_score_of_rotated_queries_and_keys_depends_on_their_distance_alone():
    table = rotary_positions(4, 8)
    q, k = torch.randn(2, 8)
    queries, keys = ([apply_rot_embed_cat(x, row) for row in table] for x in (q, k))
    score = torch.stack([torch.stack([a @ b for b in keys]) for a in queries]).view(4, 4, 4, 4)  # rows, columns, twice
    torch.testing.assert_close(score[0, 0, 1, 2], score[2, 1, 3, 3])
    torch.testing.assert_close(score[1, 1, 0, 3], score[2, 0, 1, 2])
    assert (score[0, 0, 1, 2] - score[0, 0, 2, 1]).abs() > 1e-3


def test_tokens_without_a_position_are_not_rotated():
    table = rotary_positions(2, 8, prefix=3)
    x = torch.randn(7, 8)
    rotated = apply_rot_embed_cat(x, table)
    assert torch.equal(rotated[:3], x[:3])
    assert not torch.allclose(rotated[4:], x[4:])


def test_attention_with_normalized_queries_and_keys_does_not_see_their_length():
    attention = Attention(16, 2, qk_norm=True)
    x = torch.randn(2, 5, 16)
    before = attention(x)
    with torch.no_grad():
        attention.qkv.weight[:32] *= 7  # queries and keys
        attention.qkv.bias[:32] *= 7
    torch.testing.assert_close(attention(x), before, atol=1e-5, rtol=1e-4)


def test_all_tokens_attend_alike_to_a_context_of_one_token():
    # The softmax over one token is 1: the output is a linear map of that token.
    attention = Attention(16, 4, context=6, bias=False)
    x, context = torch.randn(2, 5, 16), torch.randn(2, 1, 6)
    expected = attention.proj(attention.kv(context)[..., 16:])
    torch.testing.assert_close(attention(x, context), expected.expand(2, 5, 16), atol=1e-5, rtol=1e-4)


OPTIONS = [
    {},
    {"mlp": "swiglu"},
    {"mlp": "conv"},
    {"norm": "rms"},
    {"qk_norm": True},
    {"rotary": True},
    {"context_tokens": 3},
]
OPTIONS += [{"value_residual": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options), "plain"))
def test_recomputed_activations_change_nothing(options):
    outputs, gradients, calls = [], [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        config = DiTConfig(width=16, depth=2, heads=2, patch=4, grad_checkpointing=recompute, **options)
        network = DiT(config, Interface(PIXELS, REP))
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.2)
        network.blocks[1].register_forward_pre_hook(lambda *_, recompute=recompute: calls.append(recompute))
        outputs.append(network(torch.randn(2, 3, 8, 8), torch.tensor([3, 700]), torch.randn(2, 6)))
        outputs[-1].square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)
    assert all(g.abs().sum() > 0 for g in gradients[1])
    assert calls == [False, True, True]


def test_a_gated_mlp_has_about_as_many_parameters():
    networks = [DiT(DiTConfig(depth=1, mlp=mlp), Interface(Space((4, 8, 8)))) for mlp in ("gelu", "swiglu")]
    plain, gated = (sum(p.numel() for p in network.blocks.parameters()) for network in networks)
    assert gated == pytest.approx(plain, rel=0.01)


@pytest.mark.parametrize("options", [{}, {"context_tokens": 3, "condition": "representation"}])
def test_the_tokens_to_align_are_those_of_the_patches_after_the_chosen_block(options):
    config = DiTConfig(width=16, depth=3, heads=2, patch=4, align={"depth": 2}, **options)
    network = DiT(config, Interface(PIXELS, REP))
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    outputs = []
    network.blocks[1].register_forward_hook(lambda module, args, output: outputs.append(output))
    x, t, rep = torch.randn(2, 3, 8, 8), torch.tensor([1, 5]), torch.randn(2, 6)
    network.eval()(x, t, rep)
    assert not network.take_features()
    network.train()(x, t, rep)
    (tokens,) = network.take_features()
    assert torch.equal(tokens, outputs[1][:, -4:])


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"rotary": True, "width": 36, "heads": 6}, "width is a multiple of 4, not 6"),
        ({"context_tokens": 2}, "generator.condition is none"),
        ({"align": {"depth": 13}}, "align.depth is 13, but there are 12 blocks"),
    ],
)
def test_options_without_the_condition_or_block_that_they_need_are_refused(config, error):
    with pytest.raises(UserError, match=error):
        DiT(DiTConfig(**config), Interface(PIXELS))
