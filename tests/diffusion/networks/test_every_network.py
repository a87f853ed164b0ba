"""What every registered representation network promises."""

import pytest
import torch

from rcg.core.contracts import Interface, Space
from rcg.core.errors import UserError
from rcg.core.registry import NETWORKS
from rcg.core.rng import SampleNoise
from rcg.diffusion.model import build
from rcg.diffusion.networks.skip_mlp import SkipMLP, SkipMLPConfig

DATA, LABELS = Space((6,)), Space((), vocab=3)


@pytest.fixture(params=NETWORKS.names())
def network(request):
    return NETWORKS.get(request.param)


def model(network, cond=None, **config):
    torch.manual_seed(0)
    condition = {"condition": "class" if cond else "none"}
    return build(network.Config(width=32, depth=3, **condition | config), network, DATA, cond)


@pytest.mark.parametrize("cond", [None, LABELS])
def test_it_maps_vectors_times_and_conditions_sample_by_sample(network, cond):
    m = model(network, cond)
    for p in m.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x, t = torch.randn(5, 6), torch.tensor([0, 10, 500, 900, 999])
    labels = torch.tensor([0, 1, 2, 3, 0]) if cond else None  # 3 is the null label
    out = m.network(x, t, labels)
    assert out.shape == (5, 1, 6)
    alone = m.network(x[2:3], t[2:3], None if labels is None else labels[2:3])
    torch.testing.assert_close(alone, out[2:3], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(m.network(x, t.flip(0), labels), out)
    if cond:
        assert not torch.allclose(m.network(x, t, labels.roll(1)), out)


@pytest.mark.parametrize("process", [{"name": "gaussian"}, {"name": "flow"}])
@pytest.mark.parametrize("itself", [False, True])
def test_it_learns_where_the_data_lies(network, process, itself):
    m = model(network, process=process, sampler={"name": "ddim", "steps": 20, "eta": 0}, self_condition=itself)
    optimizer = torch.optim.AdamW(m.parameters(), lr=3e-3)
    center = torch.tensor([2.0, -1.0, 0.0, 1.0, 0.5, -2.0])
    for _ in range(300):
        loss = sum(m(center + 0.1 * torch.randn(128, 6), None).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = m.eval().sample(None, SampleNoise(0, range(64), "t"))
    torch.testing.assert_close(drawn.mean(0), center, atol=0.3, rtol=0)
    assert drawn.std(0).max() < 0.5


def test_the_input_enters_every_layer_of_the_skip_network():
    network = SkipMLP(SkipMLPConfig(), Interface(Space((512,))))
    assert [layer.linear.in_features for layer in network.layers] == [512, *[2560] * 8]
    assert network.output.in_features == 2560


def test_a_capability_that_a_network_lacks_is_refused_by_its_name(network, monkeypatch):
    monkeypatch.setattr(network, "capabilities", frozenset())
    with pytest.raises(
        UserError, match=f"{network.Config().name} does not support self_condition: set it to false or null"
    ):
        model(network, self_condition=True)
    model(network)  # nothing is asked of it
