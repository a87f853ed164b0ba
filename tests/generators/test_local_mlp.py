"""The MLP of DiT whose hidden channels are filtered over the grid of patches."""

import torch
from timm.layers import Mlp
from torch.nn import functional as F

from rcg.core.contracts import Interface, Space
from rcg.generators.dit import ACTIVATIONS, DiT, DiTConfig, LocalMlp

SMALL = {"width": 8, "depth": 2, "heads": 2, "patch": 2}


def local_mlp(prefix=0):
    torch.manual_seed(0)
    return LocalMlp(4, 6, prefix, ACTIVATIONS["tanh"])


def test_a_filter_of_the_middle_alone_leaves_the_plain_mlp():
    local, plain = local_mlp(), Mlp(4, 6, act_layer=ACTIVATIONS["tanh"])
    plain.load_state_dict({key: value for key, value in local.state_dict().items() if not key.startswith("local.")})
    with torch.no_grad():
        local.local.weight.zero_()[:, :, 1, 1] = 1
        local.local.bias.zero_()
    x = torch.randn(2, 9, 4)
    torch.testing.assert_close(local(x), plain(x))


def test_hidden_channels_are_filtered_over_rows_and_columns():
    local, x = local_mlp(), torch.randn(2, 9, 4)
    hidden = F.pad(local.fc1(x).unflatten(1, (3, 3)), (0, 0, 1, 1, 1, 1))  # (B, 5, 5, 6)
    filtered = local.local.bias + sum(
        local.local.weight[:, 0, i, j] * hidden[:, i : i + 3, j : j + 3] for i in range(3) for j in range(3)
    )
    torch.testing.assert_close(local(x), local.fc2(F.gelu(filtered, approximate="tanh")).flatten(1, 2))


def test_tokens_without_a_place_are_left_out_of_the_filters():
    local, x = local_mlp(prefix=2), torch.randn(2, 11, 4)
    moved = x.clone()
    moved[:, 0] += 1
    assert torch.equal(local(x)[:, 1:], local(moved)[:, 1:])
    torch.testing.assert_close(local(x)[:, :2], local.fc2(local.act(local.fc1(x[:, :2]))))


def test_filters_are_trained_by_adamw_and_a_new_network_is_the_identity():
    network = DiT(DiTConfig(**SMALL, mlp="conv"), Interface(Space((3, 8, 8))))
    filters = [block.mlp.local.weight for block in network.blocks]
    assert not {id(weight) for weight in filters} & {id(weight) for weight in network.hidden_matrices()}
    tokens = torch.randn(2, 16, 8)
    assert torch.equal(network.blocks[0](tokens, torch.randn(2, 8)), tokens)
