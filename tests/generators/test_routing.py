"""Token routing: in training, some tokens go past some blocks, and nothing else changes."""

import pytest
import torch

from rcg.core.contracts import Interface, Space
from rcg.core.errors import UserError
from rcg.core.rng import batch_draws, draws
from rcg.generators.dit import DiT, DiTConfig, RoutingConfig
from tests.models import dit

REP = Space((4,))
ROUTED = {"patch": 2, "depth": 4, "routing": {"share": 0.75, "first": 2, "last": -2}}
MODERN = {"rotary": True, "qk_norm": True, "norm": "rms", "value_residual": True, "context_tokens": 3}
X, T, Z = torch.randn(3, 3, 8, 8), torch.tensor([3, 300, 700]), torch.randn(3, 4)


@pytest.mark.parametrize("options", [{}, MODERN], ids=["plain", "modern"])
def test_tokens_leave_the_route_as_they_came_and_the_others_see_each_other_alone(options, monkeypatch):
    network = dit(REP, **ROUTED, **options).network
    prefix = options.get("context_tokens", 0)
    places = torch.tensor([[1, 4, 5, 14], [15, 0, 2, 3], [7, 8, 6, 9]]) + prefix
    kept = torch.cat([torch.arange(prefix).expand(3, -1), places], dim=1)
    monkeypatch.setattr(network, "_kept", lambda h: kept)
    outputs = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, args, output: outputs.append((args, output)))
    result = network(X, T, Z)
    into = outputs[0][1][0] if options else outputs[0][1]
    values = outputs[0][1][1] if options else None
    out_of = outputs[3][0][0]  # what goes into the last block
    for row, chosen in enumerate(kept):  # one image at a time, one block at a time
        h = into[row : row + 1, chosen]
        rotation = network.rotation[chosen] if options else None
        for block in network.blocks[1:3]:
            first = None if values is None else values[row : row + 1, :, chosen]
            h = block(h, outputs[1][0][1][row : row + 1], rotation, first)
        torch.testing.assert_close(out_of[row, chosen], h[0])
        skipped = [place for place in range(prefix + 16) if place not in chosen.tolist()]
        assert len(skipped) == 12
        assert torch.equal(out_of[row, skipped], into[row, skipped])
    assert result.shape == (3, 1, 3, 8, 8)


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_a_share_of_no_token_is_the_plain_network_with_the_plain_draws(share):
    results = []
    for routing in (None, {"share": share, "first": 2, "last": 3}):
        m = dit(REP, **ROUTED | {"routing": routing}).train()
        with batch_draws(1, 0, 3, 3):
            loss = m(X, Z)["mse"]
            results.append([loss, draws().uniform((3,), X.device)])
        loss.backward()
        results[-1] += [p.grad for p in m.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_all_tokens_go_through_all_blocks_but_in_training():
    plain = dit(REP, **ROUTED | {"routing": None}).network
    routed = dit(REP, **ROUTED).network
    assert torch.equal(routed.eval()(X, T, Z), plain(X, T, Z))
    routed.train()
    with torch.no_grad():  # the estimate of self-conditioning
        assert torch.equal(routed(X, T, Z), plain(X, T, Z))
    assert not torch.allclose(routed(X, T, Z), plain(X, T, Z))


def test_the_share_is_exact_and_every_token_as_likely_as_the_others():
    network = dit(REP, **ROUTED, context_tokens=2).network
    torch.manual_seed(0)
    kept = network._kept(torch.zeros(4000, 18, 16))
    assert kept.shape == (4000, 2 + 4)
    assert torch.equal(kept[:, :2], torch.tensor([0, 1]).expand(4000, -1))
    counts = torch.bincount(kept[:, 2:].flatten(), minlength=18)[2:]
    assert counts.sum() == 16_000
    assert counts.double().sub(1000).abs().max() < 4 * (4000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("options", [{}, MODERN | {"early_exit": {"block": 1}}], ids=["plain", "modern"])
def test_parts_of_a_batch_have_the_gradients_of_the_whole_recomputed_or_not(options):
    gradients = []
    for parts, recompute in ((1, False), (3, False), (3, True)):
        m = dit(REP, **ROUTED, **options, grad_checkpointing=recompute, self_condition=True)
        count = 6 // parts
        x, z = torch.linspace(-1, 1, 6 * 192).sin().view(6, 3, 8, 8), torch.linspace(-2, 2, 24).view(6, 4)
        for part in range(parts):
            torch.manual_seed(part)  # what others draw is no matter
            own = slice(part * count, (part + 1) * count)
            with batch_draws(7, part * count, count, 6):
                (sum(m(x[own], z[own]).values()) / parts).backward()
        assert all(p.grad is not None for p in m.parameters())
        gradients.append([p.grad for p in m.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients[2], gradients[1], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_it_compiles_into_one_graph_with_all_other_options():
    options = MODERN | {"early_exit": {"block": 1}, "grad_checkpointing": True}
    network = dit(REP, **ROUTED, **options).network.train()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    results = []
    for function in (network, compiled):
        torch.manual_seed(0)
        results.append(function(X, T, Z))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("routing", "blocks"),
    [({}, range(3, 26)), ({"first": 2, "last": -2}, range(2, 28)), ({"first": -5, "last": 24}, range(24, 25))],
)
def test_blocks_are_counted_from_either_end(routing, blocks):
    assert RoutingConfig(**routing).blocks(28) == blocks


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"routing": {"first": 1, "last": 3}}, "leads past blocks 1 to 3 of 6, .*: choose from 2 to 5"),
        ({"routing": {"first": 2, "last": 6}}, "leads past blocks 2 to 6 of 6, .*: choose from 2 to 5"),
        ({"routing": {"first": 4, "last": 3}}, "leads past blocks 4 to 3 of 6"),
        ({"routing": {"first": 0, "last": -1}}, "leads past blocks 7 to 6 of 6"),
        (
            {"routing": {"first": 2, "last": -2}, "early_exit": {"block": 4}},
            "early_exit.block is 4, .* before 2, or from 5",
        ),
        ({"routing": {"first": 2, "last": -2}, "mlp": "conv"}, "mlp conv filters the whole grid"),
        (
            {"routing": {"first": 2, "last": -2}, "align": {"depth": [1, 3]}},
            "align.depth is 1, 3, .* before 2, or from 5",
        ),
        ({"routing": {"first": 2, "last": -2}, "align": {"depth": 2}}, "align.depth is 2, .* before 2, or from 5 on"),
    ],
)
def test_routes_that_leave_something_without_its_tokens_are_refused(config, error):
    with pytest.raises(UserError, match=error):
        DiT(DiTConfig(depth=6, **config), Interface(Space((3, 8, 8))))


@pytest.mark.parametrize("share", [1.0, -0.1])
def test_no_block_is_left_without_tokens(share):
    with pytest.raises(ValueError, match="share"):
        DiTConfig(routing={"share": share})
