"""What every registered denoiser promises, under every condition."""

import pytest
import torch

from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import GENERATORS, SAMPLERS
from rcg.core.rng import Streams
from rcg.diffusion.model import build
from rcg.diffusion.samplers._timesteps import GridConfig
from rcg.pipeline import Pipeline
from tests.toy import tool, write

SMALL = {
    "dit": {"width": 16, "depth": 2, "heads": 2, "patch": 4},
    "adm": {"width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [8]},
    "ldm": {"width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [8]},
    "mage": {"width": 16, "depth": 2, "heads": 2, "decoder_depth": 2, "decoder_heads": 2},
}
"""A small network of each kind for images of 16 px, or 4 x 4 tokens."""
DENOISERS = [name for name in GENERATORS.names() if GENERATORS.get(name).Config().process.name in ("gaussian", "flow")]
WALKS = [name for name in SAMPLERS.names() if issubclass(SAMPLERS.get(name).Config, GridConfig)]
CONDITIONS = {"none": None, "class": Space((), vocab=5), "representation": Space((6,))}
PIXELS, TOKENS = Space((3, 16, 16)), Space((4, 4), vocab=12, id="tokens")
UNHEARD = (".cross.q.", ".cross.kv.weight", ".norm2.")
"""With one token to attend to, queries and keys change nothing."""


def model(name, condition="representation", **config):
    torch.manual_seed(0)
    network = GENERATORS.get(name)
    config = network.Config(condition=condition, **SMALL.get(name, {}) | config)
    return build(config, network, TOKENS if config.process.discrete else PIXELS, CONDITIONS[condition])


def awake(m):
    """Give every layer something to say: new networks are silent."""
    for p in m.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return m


def given(condition):
    return {"none": None, "class": torch.tensor([0, 2, 5]), "representation": torch.randn(3, 6)}[condition]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", DENOISERS)
def test_it_maps_data_times_and_conditions_sample_by_sample(name, condition):
    m = awake(model(name, condition)).eval()
    x, t, cond = torch.randn(3, 3, 16, 16), torch.tensor([0, 500, 999]), given(condition)
    out = m.network(x, t, cond)
    assert out.shape == (3, m.process.heads, 3, 16, 16)
    alone = m.network(x[1:2], t[1:2], None if cond is None else cond[1:2])
    torch.testing.assert_close(alone, out[1:2], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(m.network(x, t.flip(0), cond), out)
    if cond is not None:
        assert not torch.allclose(m.network(x, t, cond.roll(1, 0)), out)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", DENOISERS)
def test_the_loss_reaches_every_parameter(name, condition, checkpoint, monkeypatch):
    m = awake(model(name, condition, grad_checkpointing=checkpoint))
    monkeypatch.setattr(m, "dropped", lambda cond: torch.tensor([True, False, False]))
    sum(m(torch.randn(3, 3, 16, 16), given(condition)).values()).backward()
    silent = {key for key, p in m.named_parameters() if p.grad is None or p.grad.abs().sum() == 0}
    assert all(p.grad is not None for p in m.parameters())
    assert not [key for key in silent if not any(part in key for part in UNHEARD)]


@pytest.mark.parametrize("process", [{"name": "gaussian", "variance": "learned_range"}, {"name": "flow"}])
@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("sampler", WALKS)
def test_every_sampler_walks_with_it(name, process, sampler):
    m = model(name, process=process, sampler={"name": sampler, "steps": 2}).eval()
    with torch.no_grad():
        drawn = m.sample(torch.randn(2, 6), Streams(0, range(2), "t"))
    assert drawn.shape == (2, 3, 16, 16)
    assert torch.isfinite(drawn).all()


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", DENOISERS)
def test_it_trains_and_samples_through_the_tools(name, condition, tmp_path):
    generator = {"name": name, "condition": condition, "sampler": {"steps": 2}, **SMALL.get(name, {})}
    generator["train"] = {"steps": 2, "batch_size": 8, "precision": "no", "tracker": "none"}
    generator["sampler"] = GENERATORS.get(name).Config().sampler.model_dump() | {"steps": 2}
    path = write(tmp_path, generator=generator, encoder__weights="none")
    if condition == "representation":
        assert tool("train_rdm", path, "rdm.train.steps=1").returncode == 0
    trained = tool("train_pixel", path)
    assert trained.returncode == 0, trained.stderr
    images = Pipeline.from_run(tmp_path / "run").sample(range(2), rdm_steps=2).images
    assert images.shape == (2, 3, 16, 16)
    assert 0 <= images.min() <= images.max() <= 1


@pytest.mark.parametrize("name", DENOISERS)
def test_its_name_alone_gives_a_working_network(name):
    network = GENERATORS.get(name)
    with torch.device("meta"):
        for side in (8, 16, 32, 64, 256):
            config = network.Config()
            built = build(config, network, Space((3, side, side)), Space((6,)))
            assert built.process.heads in (1, 2)


@pytest.mark.parametrize("name", GENERATORS.names())
def test_activations_that_are_computed_again_change_no_gradient(name):
    losses, gradients, calls = [], [], []
    for checkpoint in (False, True):
        m = awake(model(name, grad_checkpointing=checkpoint))
        seen = []
        for module in m.network.modules():
            module.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(module))
        torch.manual_seed(1)
        x = torch.randint(12, (3, 4, 4)) if m.data.vocab else torch.randn(3, 3, 16, 16)
        loss = sum(m(x, torch.randn(3, 6)).values())
        loss.backward()
        losses.append(loss.detach())
        gradients.append({key: p.grad for key, p in m.named_parameters()})
        calls.append(len(seen))
    assert calls[1] > 1.5 * calls[0]
    assert losses[0] == losses[1]
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key)


def test_a_network_that_cannot_recompute_says_so():
    class Plain(torch.nn.Module):
        def __init__(self, config, data, cond, heads):
            super().__init__()

    config = GENERATORS.get("dit").Config(condition="none", grad_checkpointing=True)
    with pytest.raises(UserError, match="dit always keeps its activations"):
        build(config, Plain, PIXELS, None)


@pytest.mark.parametrize("name", DENOISERS)
def test_it_compiles_into_one_graph(name):
    m = awake(model(name, grad_checkpointing=True))
    x, t, cond = torch.randn(2, 3, 16, 16), torch.tensor([3, 900]), torch.randn(2, 6)
    compiled = torch.compile(m.network, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x, t, cond), m.network(x, t, cond))


@pytest.mark.parametrize("name", DENOISERS)
def test_it_can_be_shown_its_last_estimate(name):
    m = awake(model(name, self_condition=True, sampler={"name": "ddpm", "steps": 2}))
    sum(m(torch.randn(4, 3, 16, 16), torch.randn(4, 6)).values()).backward()
    with torch.no_grad():
        drawn = m.eval().sample(torch.randn(2, 6), Streams(0, range(2), "t"))
    assert drawn.shape == (2, 3, 16, 16)
