"""The contract of every registered generator, under every condition."""

import math
from functools import partial

import pytest
import torch

from rcg.core.contracts import Denoiser, Space
from rcg.core.errors import UserError
from rcg.core.registry import GENERATORS
from rcg.core.rng import SampleNoise, batch_draws
from rcg.diffusion.h_space import Asymmetric, ConditionShift, scaled
from rcg.diffusion.inpainting import box, inpaint
from rcg.diffusion.model import build
from rcg.diffusion.repaint import Resampling
from rcg.generators.autoencoders.pixels import Pixels, PixelsConfig
from rcg.pipeline import Pipeline, SamplingOptions
from tests.ideal import CONTINUOUS
from tests.small import GENERATOR, PIXELS, TOKENS
from tests.toy import tool, write

CONTINUOUS_GENERATORS = [name for name in GENERATORS.names() if not GENERATORS.get(name).Config().process.discrete]
CONDITIONS = {"none": None, "class": Space((), vocab=5), "representation": Space((6,))}
WITHOUT_EFFECT = (".cross.q.", ".cross.kv.weight", ".norm2.")
"""With one token to attend to, queries and keys change nothing."""


def model(name, condition="representation", **config):
    torch.manual_seed(0)
    network = GENERATORS.get(name)
    config = network.Config(condition=condition, **GENERATOR.get(name, {}) | config)
    return build(config, network, TOKENS if config.process.discrete else PIXELS, CONDITIONS[condition])


def with_random_weights(m):
    """Draw all weights: the output of a new network is zero."""
    for p in m.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return m


def draw_cond(condition):
    return {"none": None, "class": torch.tensor([0, 2, 5]), "representation": torch.randn(3, 6)}[condition]


def require(name, capability):
    if capability not in GENERATORS.get(name).capabilities:
        pytest.skip(f"{name} does not support {capability}")


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", CONTINUOUS_GENERATORS)
def test_it_maps_data_times_and_conditions_sample_by_sample(name, condition):
    m = with_random_weights(model(name, condition)).eval()
    x, t, cond = torch.randn(3, 3, 16, 16), torch.tensor([0, 500, 999]), draw_cond(condition)
    out = m.network(x, t, cond)
    assert out.shape == (3, m.process.outputs, 3, 16, 16)
    alone = m.network(x[1:2], t[1:2], None if cond is None else cond[1:2])
    torch.testing.assert_close(alone, out[1:2], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(m.network(x, t.flip(0), cond), out)
    if cond is not None:
        assert not torch.allclose(m.network(x, t, cond.roll(1, 0)), out)


@pytest.mark.parametrize(("process", "recompute"), [("gaussian", False), ("gaussian", True), ("meanflow", True)])
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", CONTINUOUS_GENERATORS)
def test_the_loss_reaches_every_parameter(name, condition, process, recompute, monkeypatch):
    if recompute:
        require(name, "grad_checkpointing")
    m = with_random_weights(model(name, condition, grad_checkpointing=recompute, process=process))
    monkeypatch.setattr(m, "dropped", lambda cond: torch.tensor([True, False, False]))
    sum(m(torch.randn(3, 3, 16, 16), draw_cond(condition)).values()).backward()
    assert all(p.grad is not None for p in m.parameters())
    still = {key for key, p in m.named_parameters() if p.grad.abs().sum() == 0}
    assert not [key for key in still if not any(part in key for part in WITHOUT_EFFECT)]


@pytest.mark.parametrize("name", GENERATORS.names())
def test_it_leaves_tokens_to_be_aligned_in_training_alone(name):
    require(name, "align")
    m = model(name, align={"depth": [1, 2]})
    x, t, cond = torch.randn(3, 3, 16, 16), torch.tensor([0, 500, 999]), draw_cond("representation")
    m.network(x, t, cond)
    tokens = m.network.take_features()
    assert [part.shape[2] for part in tokens] == list(m.network.feature_widths)
    assert all(part.shape[:2] == (3, math.isqrt(part.shape[1]) ** 2) for part in tokens)
    m.network.eval()(x, t, cond)
    assert not m.network.take_features()


@pytest.mark.parametrize(
    "process", [{"name": "gaussian", "variance": "learned_range"}, {"name": "flow"}, {"name": "meanflow"}]
)
@pytest.mark.parametrize("name", CONTINUOUS_GENERATORS)
@pytest.mark.parametrize("sampler", CONTINUOUS)
def test_every_sampler_samples_from_it(name, process, sampler):
    if process["name"] == "meanflow":
        require(name, "two_times")
    m = model(name, process=process, sampler={"name": sampler, "steps": 2}).eval()
    with torch.no_grad():
        samples = m.sample(torch.randn(2, 6), SampleNoise(0, range(2), "t"))
    assert samples.shape == (2, 3, 16, 16)
    assert torch.isfinite(samples).all()


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", CONTINUOUS_GENERATORS)
def test_it_completes_images(name, condition):
    m = with_random_weights(model(name, condition, sampler={"name": "ddim", "steps": 2})).eval()
    pixels, image = Pixels(PixelsConfig(), 16), torch.rand(3, 3, 16, 16)
    hole = torch.stack([box(16, 0, 0.25, 0.5, 1), box(16, 0, 0, 1, 1), torch.zeros(16, 16, dtype=torch.bool)])
    cond = draw_cond(condition)

    def noise(rows):
        return SampleNoise(0, rows, "t")

    with torch.no_grad():
        filled = inpaint(m, pixels, image, hole, cond, noise, resampling=Resampling(2))
        first = None if cond is None else cond[1:2]
        sample = pixels.decode(m.sample(first, noise([1])))
    known = ~hole[:, None].expand_as(image)
    assert torch.equal(filled[known], image[known])
    assert torch.equal(filled[1:2], sample)
    assert 0 <= filled.min() <= filled.max() <= 1
    assert (filled != image).flatten(1).any(1).tolist() == [True, True, False]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", CONTINUOUS_GENERATORS)
def test_it_trains_and_samples_through_the_tools(name, condition, tmp_path):
    generator = {"name": name, "condition": condition, **GENERATOR.get(name, {})}
    generator["train"] = {"steps": 2, "batch_size": 8, "precision": "no", "tracker": "none"}
    generator["sampler"] = GENERATORS.get(name).Config().sampler.model_dump() | {"steps": 2}
    path = write(tmp_path, generator=generator, encoder__weights="none")
    if condition == "representation":
        assert tool("train_rdm", path, "rdm.train.steps=1").returncode == 0
    trained = tool("train_pixel", path)
    assert trained.returncode == 0, trained.stderr
    options = SamplingOptions(rdm_steps=2 if condition == "representation" else None)
    images = Pipeline.from_pretrained(tmp_path / "run").generate(range(2), options).images
    assert images.shape == (2, 3, 16, 16)
    assert 0 <= images.min() <= images.max() <= 1


@pytest.mark.parametrize("name", CONTINUOUS_GENERATORS)
def test_its_name_alone_gives_a_working_network(name):
    network = GENERATORS.get(name)
    with torch.device("meta"):
        for side in (8, 16, 32, 64, 256):
            m = build(network.Config(), network, Space((3, side, side)), Space((6,)))
            assert m.process.outputs in (1, 2)


@pytest.mark.parametrize("name", GENERATORS.names())
def test_activations_that_are_computed_again_change_no_gradient(name):
    require(name, "grad_checkpointing")
    losses, gradients, calls = [], [], []
    for recompute in (False, True):
        m = with_random_weights(model(name, grad_checkpointing=recompute))
        evaluated = []
        for module in m.network.modules():
            module.register_forward_pre_hook(lambda module, args, evaluated=evaluated: evaluated.append(module))
        torch.manual_seed(1)
        x = torch.randint(12, (3, 4, 4)) if m.data.vocab else torch.randn(3, 3, 16, 16)
        loss = sum(m(x, torch.randn(3, 6)).values())
        loss.backward()
        losses.append(loss.detach())
        gradients.append({key: p.grad for key, p in m.named_parameters()})
        calls.append(len(evaluated))
    assert calls[1] > 1.5 * calls[0]
    assert losses[0] == losses[1]
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key)


@pytest.mark.parametrize(
    ("condition", "itself", "process"),
    [("class", False, None), ("representation", True, None), ("class", False, "meanflow")],
)
@pytest.mark.parametrize("name", GENERATORS.names())
def test_parts_of_a_batch_have_the_gradients_of_the_whole(name, condition, itself, process):
    """Times, noise, masks, dropout, dropped conditions and estimates are those of a sample's place in the batch."""
    if itself:
        require(name, "self_condition")
    if process:
        require(name, "two_times")
    config = {key: 0.3 for key in ("dropout",) if key in GENERATORS.get(name).Config.model_fields}
    if "grad_checkpointing" in GENERATORS.get(name).capabilities:
        config["grad_checkpointing"] = True
    if process:
        config["process"] = {"name": process, "leaps": 0.5}
    m = model(name, condition, condition_dropout=0.3, condition_noise=0.2, self_condition=itself, **config)
    with_random_weights(m)
    torch.manual_seed(1)
    x = torch.randint(12, (6, 4, 4)) if m.data.vocab else torch.randn(6, 3, 16, 16)
    cond = torch.arange(6) % 5 if condition == "class" else torch.randn(6, 6)
    gradients = []
    for parts in (1, 2):
        m.zero_grad()
        count = 6 // parts
        for part in range(parts):
            torch.manual_seed(part)  # what others draw is no matter
            own = slice(part * count, (part + 1) * count)
            with batch_draws(7, part * count, count, 6):
                (sum(m(x[own], cond[own]).values()) / parts).backward()
        gradients.append({key: p.grad.clone() for key, p in m.named_parameters() if p.grad is not None})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("capability", "config"),
    [("grad_checkpointing", {"grad_checkpointing": True}), ("self_condition", {"self_condition": True})],
)
def test_a_network_without_a_capability_is_refused(capability, config):
    class Plain(Denoiser):
        pass

    with pytest.raises(UserError, match=f"dit does not support {capability}"):
        build(GENERATORS.get("dit").Config(condition="none", **config), Plain, PIXELS, None)


@pytest.mark.parametrize("name", GENERATORS.names())
def test_its_bottleneck_is_there_if_it_has_an_h_space(name):
    network = model(name).network
    if "h_space" in network.capabilities:
        assert network.bottleneck() in set(network.modules())
    else:
        with pytest.raises(UserError, match="has no h-space: use dit, adm or ldm"):
            network.bottleneck()


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("name", CONTINUOUS_GENERATORS)
def test_its_h_space_is_edited(name, itself):
    require(name, "h_space")
    m = with_random_weights(model(name, self_condition=itself, sampler={"name": "ddim", "steps": 3})).eval()
    source, target = torch.randn(2, 2, 6)

    @torch.no_grad()
    def sample(*factors):
        for factor in factors:
            shift = scaled(ConditionShift(m.network, target), factor)
            wrap = partial(Asymmetric, network=m.network, shift=shift, end=0.5)
            yield m.sample(source, SampleNoise(0, range(2), "t"), wrap_process=wrap)

    with torch.no_grad():
        plain = m.sample(source, SampleNoise(0, range(2), "t"))
    unmoved, moved = sample(0.0, 1.0)
    assert torch.equal(unmoved, plain)
    assert not torch.allclose(moved, plain)


def test_a_block_is_chosen_by_its_number():
    network = model("dit", depth=3).network
    assert network.bottleneck() is network.blocks[1]
    assert network.bottleneck(3) is network.blocks[2]
    with pytest.raises(UserError, match="no block 4 in this dit: choose one from 1 to 3"):
        network.bottleneck(4)
    with pytest.raises(UserError, match="a U-Net has one bottleneck, and no block 1 to choose"):
        model("adm").network.bottleneck(1)


@pytest.mark.parametrize("name", CONTINUOUS_GENERATORS)
def test_it_compiles_into_one_graph(name):
    recompute = "grad_checkpointing" in GENERATORS.get(name).capabilities
    m = with_random_weights(model(name, grad_checkpointing=recompute))
    x, t, cond = torch.randn(2, 3, 16, 16), torch.tensor([3, 900]), torch.randn(2, 6)
    compiled = torch.compile(m.network, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x, t, cond), m.network(x, t, cond))


@pytest.mark.parametrize("name", CONTINUOUS_GENERATORS)
def test_a_self_conditioned_one_trains_and_samples(name):
    require(name, "self_condition")
    m = with_random_weights(model(name, self_condition=True, sampler={"name": "ddpm", "steps": 2}))
    sum(m(torch.randn(4, 3, 16, 16), torch.randn(4, 6)).values()).backward()
    with torch.no_grad():
        samples = m.eval().sample(torch.randn(2, 6), SampleNoise(0, range(2), "t"))
    assert samples.shape == (2, 3, 16, 16)
