"""The semantic encoder: half a U-Net."""

import pytest
import torch

from rcg.core import checkpoint
from rcg.core.checkpoint import Facts
from rcg.core.errors import UserError
from rcg.core.registry import ENCODERS
from rcg.encoding.encoder import encoder_part

Semantic = ENCODERS.get("semantic")
TINY = {"width": 16, "multipliers": [1, 2], "blocks": 1, "dim": 6}


def tiny(side=8, **config):
    torch.manual_seed(0)
    return Semantic(Semantic.Config(**TINY | config), side)


@pytest.mark.parametrize(
    ("side", "width", "parameters"), [(64, 64, 19320512), (128, 128, 24673536), (256, 128, 30150400)]
)
def test_the_published_sizes_have_their_number_of_parameters(side, width, parameters):
    with torch.device("meta"):
        encoder = Semantic(Semantic.Config(width=width), side)
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert encoder.width == 512


def test_it_is_the_pooled_bottleneck_of_half_a_u_net():
    encoder = tiny(multipliers=[1], attention=[]).eval()
    first, (in_middle, _, last) = encoder.trunk.down[0][0], encoder.trunk.bottleneck
    image = torch.rand(2, 3, 8, 8)
    h = torch.nn.functional.conv2d(2 * image - 1, encoder.trunk.input.weight, encoder.trunk.input.bias, padding=1)
    for block in (first, in_middle, last):  # a new attention is the identity
        normalized = torch.nn.functional.group_norm(h, encoder.config.groups)
        h = h + torch.nn.functional.conv2d(
            torch.sigmoid(normalized) * normalized, block.conv_in.weight, block.conv_in.bias, padding=1
        )
    normalized = torch.nn.functional.group_norm(h, encoder.config.groups)
    pooled = (torch.sigmoid(normalized) * normalized).mean((2, 3))
    expected = pooled @ encoder.output.weight.T + encoder.output.bias
    torch.testing.assert_close(encoder(image), expected, atol=1e-5, rtol=1e-4)


def test_its_weights_can_come_from_a_file(tmp_path):

    encoder = tiny()
    checkpoint.save(tmp_path / "encoder.safetensors", encoder_part(encoder, Facts(image_size=8)))
    loaded = tiny(weights=str(tmp_path / "encoder.safetensors"))
    torch.testing.assert_close(loaded(torch.ones(1, 3, 8, 8)), encoder(torch.ones(1, 3, 8, 8)))
    with pytest.raises(UserError, match="does not fit Semantic"):
        tiny(weights=str(tmp_path / "encoder.safetensors"), dim=7)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"multipliers": [1, 1, 1, 1, 1]}, "encoder.multipliers has 5 levels, but a side of 8"),
        ({"groups": 5}, "encoder.groups is 5, which does not divide the width 16"),
        ({"heads": 3}, "encoder.heads is 3, which does not divide 32 channels"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_by_its_key(config, complaint):
    with pytest.raises(UserError, match=complaint):
        tiny(**config)
