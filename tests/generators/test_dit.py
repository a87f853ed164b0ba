"""DiT against the published network's recorded outputs, and what its configuration promises."""

import pytest
import torch

from generators.dit import DiT, DiTConfig
from rcg.config import GuidanceConfig
from rcg.contracts import Space
from rcg.errors import UserError
from rcg.model import Guided
from rcg.nn import attend
from tests.parity import recorded, state

RENAMED = {
    "x_embedder.proj": "patches",
    "t_embedder.mlp": "time",
    "rep_embedder": "cond.embed",
    "y_embedder.embedding_table": "cond.embed",
    "adaLN_modulation": "modulation",
    "final_layer.linear": "output",
    "final_layer.": "",
}


def published(arm):
    """Build the recorded DiT in our names; it has two heads, noise and variance."""
    about, _ = recorded(f"dit_tiny_{arm}")
    theirs = about["config"]
    cond = Space((theirs["rep_dim"],)) if arm == "rep" else Space((), vocab=theirs["num_classes"])
    config = DiTConfig(width=32, depth=2, heads=4, patch=2, gelu="exact")
    network = DiT(config, Space((4, 8, 8)), cond, heads=2)
    tensors = {}
    for key, value in state(f"dit_tiny_{arm}").items():
        other = "y_embedder" if arm == "rep" else "rep_embedder"  # stored, but without effect
        if key in ("fake_latent", "pos_embed") or key.startswith(other):
            continue
        name = key
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        tensors[name] = value.flatten(1) if key == "x_embedder.proj.weight" else value
    network.load_state_dict(tensors)
    return network.eval()


@pytest.mark.parametrize("arm", ["rep", "class"])
def test_forward_equals_the_published_one(arm):
    _, tensors = recorded(f"dit_tiny_{arm}")
    network = published(arm)
    cond = tensors["in/rep"] if arm == "rep" else tensors["in/y"]
    output = network(tensors["in/x"], tensors["in/t"], cond).flatten(1, 2)
    torch.testing.assert_close(output, tensors["out/eps_sigma"], atol=1e-5, rtol=1e-4)


def test_positions_equal_the_published_ones():
    torch.testing.assert_close(published("rep").positions[None], state("dit_tiny_rep")["pos_embed"])


def test_guidance_is_the_published_extrapolation():
    _, tensors = recorded("dit_tiny_rep")
    network = published("rep")
    x, t, rep = tensors["in/x"], tensors["in/t"], tensors["in/rep"]
    null = state("dit_tiny_rep")["fake_latent"].expand_as(rep)
    expected = network(x, t, null) + 2.5 * (network(x, t, rep) - network(x, t, null))
    # The recorded times differ within the batch, so the interval is judged by the first one; all lie inside it.
    guided = Guided(network, null, GuidanceConfig(scale=2.5), horizon=1000)(x, t, rep)
    torch.testing.assert_close(guided, expected, atol=1e-5, rtol=1e-5)


def test_a_new_block_is_the_identity_and_a_new_network_says_zero():
    network = DiT(DiTConfig(width=32, depth=2, heads=4), Space((3, 8, 8)), Space((6,)), heads=1)
    x, c = torch.randn(2, 16, 32), torch.randn(2, 32)
    assert torch.equal(network.blocks[0](x, c), x)
    assert network(torch.randn(2, 3, 8, 8), torch.tensor([1, 5]), torch.randn(2, 6)).abs().max() == 0


def test_both_ways_to_compute_attention_agree():
    q, k, v = torch.randn(3, 2, 4, 16, 8)
    with torch.no_grad():
        fused = attend(q, k, v)
    torch.testing.assert_close(attend(q.requires_grad_(), k, v), fused)


@pytest.mark.parametrize(("config", "said"), [({"patch": 3}, "patch is 3"), ({"width": 30}, "width is 30")])
def test_shapes_that_do_not_fit_are_refused(config, said):
    with pytest.raises(UserError, match=said):
        DiT(DiTConfig(**config), Space((3, 8, 8)), None, heads=1)


def test_the_published_sizes_have_their_number_of_parameters():
    # S/2 and XL/2 of the paper on 4 x 32 x 32 latents, with the variance head; the stored positions count too.
    for width, depth, heads, millions in ((384, 12, 6, 32.7), (1152, 28, 16, 674.3)):
        with torch.device("meta"):
            config = DiTConfig(width=width, depth=depth, heads=heads)
            network = DiT(config, Space((4, 32, 32)), Space((256,)), heads=2)
        assert sum(p.numel() for p in [*network.parameters(), network.positions]) == pytest.approx(
            millions * 1e6, rel=1e-3
        )
