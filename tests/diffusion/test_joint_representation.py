"""An image and its representation from one process: their vectors, losses and samples, and what keeps one of them."""

import pytest
import torch

from rcg.config import load_experiment
from rcg.core.checkpoint import Facts
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import GENERATORS, SAMPLERS
from rcg.core.rng import SampleNoise, batch_draws
from rcg.diffusion.inpainting import box, inpaint
from rcg.diffusion.joint_representation import JointLoss, Pair
from rcg.diffusion.model import GenerativeModel, build, model_part, restore
from rcg.diffusion.processes.flow import Flow, FlowConfig
from rcg.diffusion.processes.gaussian import Gaussian, GaussianConfig
from rcg.diffusion.repaint import Resampling
from rcg.encoding.run_folder import Mode, RunFolder
from rcg.generators.autoencoders.pixels import Pixels, PixelsConfig
from rcg.generators.dit import DiTConfig
from rcg.pipeline import Pipeline, SamplingOptions
from tests.ideal import BatchNoise
from tests.models import dit
from tests.small import GENERATOR, PIXELS, VECTORS
from tests.toy import tool, train, write

JOINT = {"condition": "none", "joint_representation": True}
PROCESSES = [
    Gaussian(GaussianConfig(schedule="cosine", predict="x0")),
    Gaussian(GaussianConfig(schedule="cosine", predict="v", measure="eps")),
    Flow(FlowConfig()),
]


def joint_dit(**config):
    """Build a DiT of images and representations whose zero-initialized layers are not zero."""
    torch.manual_seed(0)
    network = GENERATORS.get("dit")
    model = build(DiTConfig(**GENERATOR["dit"] | JOINT | config), network, PIXELS, None, VECTORS)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


@pytest.mark.parametrize("leading", [(), (5,), (5, 2)])
def test_what_is_joined_is_split_again(leading):
    pair = Pair(PIXELS, VECTORS)
    x, z = torch.randn(*leading, 3, 16, 16), torch.randn(*leading, 6)
    joined = pair.join(x, z)
    assert joined.shape == (*leading, *pair.space.shape)
    for part, own in zip(pair.split(joined), (x, z), strict=True):
        assert torch.equal(part, own)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_loss_is_that_of_the_data_and_a_share_of_that_of_z(process):
    pair = Pair(Space((1, 2, 2)), Space((3,)), weight=0.03)
    x, z = torch.randn(5, 1, 2, 2), torch.randn(5, 3)
    joined, seen = pair.join(x, z), []

    def net(x_t, t, cond):
        seen.append(x_t)
        return torch.tanh(x_t)[:, None]

    with batch_draws(1, 0, 5, 5):
        losses = JointLoss(process, pair).loss(net, joined, None)
    with batch_draws(1, 0, 5, 5):
        t, noise = process.draw(joined)
    alpha, sigma = (scale[:, None] for scale in process.scales(t))
    x_t = alpha * joined + sigma * noise
    torch.testing.assert_close(seen[0], x_t)
    targets = {"x0": joined, "v": alpha * noise - sigma * joined, "velocity": noise - joined}
    error = torch.tanh(x_t) - targets[process.predicts]
    if process.measures == "eps":  # where v is off by d, eps is by alpha d
        error = alpha * error
    torch.testing.assert_close(losses["mse"], error[:, :4].square().mean())
    torch.testing.assert_close(losses["z_mse"], 0.03 * error[:, 4:].square().mean())


@pytest.fixture(scope="module")
def gaussian():
    """Mean and covariance of a Gaussian of images of 4 pixels and representations of 2 numbers."""
    random = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    return random[:, 6], random[:, :6] @ random[:, :6].T / 6 + 0.05 * torch.eye(6)


def ideal_model(process, mean, covariance):
    """Return the model of that Gaussian: its network is the exact E[x0 | x_t], a linear map."""
    pair, network = Pair(Space((1, 2, 2)), Space((2,))), torch.nn.Module()

    def forward(x, t, cond):
        alpha, sigma = (scale[0] for scale in process.scales(t))
        precision = torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(6))
        x0 = mean + alpha * (x - alpha * mean) @ precision @ covariance
        eps = (x - alpha * x0) / sigma
        return {"x0": x0, "v": alpha * eps - sigma * x0, "velocity": eps - x0}[process.predicts][:, None]

    network.forward = forward
    return GenerativeModel(DiTConfig(**JOINT), network, process, pair.data, None, pair)


@pytest.mark.parametrize("process", PROCESSES)
def test_samples_have_the_joint_covariance_of_data_and_z(gaussian, process):
    mean, covariance = gaussian
    sampler = SAMPLERS.get("heun")(steps=40)
    samples = ideal_model(process, mean, covariance).sample(None, BatchNoise(20_000), sampler=sampler)
    torch.testing.assert_close(samples.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(samples.T.cov(), covariance, atol=0.04, rtol=0)


def test_data_beside_a_kept_z_comes_to_the_conditional_mean_as_it_is_resampled(gaussian):
    mean, covariance = gaussian
    z = (mean[4:] + torch.tensor([1.0, -0.5])).expand(1000, 2)
    gain = covariance[:4, 4:] @ torch.linalg.inv(covariance[4:, 4:])
    expected = mean[:4] + gain @ (z[0] - mean[4:])
    model, sampler = ideal_model(PROCESSES[2], mean, covariance), SAMPLERS.get("ddim")(steps=12)
    errors = [(expected - mean[:4]).abs().max()]
    for times in (1, 4, 16):
        samples = model.sample(z, BatchNoise(1000), sampler=sampler, resampling=Resampling(times))
        x, kept = model.split(samples)
        assert torch.equal(kept, z)
        errors.append((x.flatten(1).mean(0) - expected).abs().max())
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.6 * errors[1]
    assert errors[3] < 0.6 * errors[2]


@pytest.mark.parametrize("options", [{}, {"self_condition": True}, {"mlp": "conv", "rotary": True}])
def test_the_losses_reach_every_parameter_and_both_parts_depend_on_both(options):
    model = joint_dit(**options)
    x, z = torch.randn(4, 3, 16, 16), torch.randn(4, 6)
    losses = model(model.pair.join(x, z), None)
    assert losses.keys() == {"mse", "z_mse"}
    for loss in losses.values():
        model.zero_grad()
        loss.backward(retain_graph=True)
        assert model.network.token.embed.weight.grad.abs().sum() > 0
        assert model.network.patches.weight.grad.abs().sum() > 0
    model.zero_grad()
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("itself", [False, True])
def test_parts_of_a_batch_have_the_gradients_of_the_whole(itself):
    model = joint_dit(self_condition=itself, grad_checkpointing=True)
    joined, gradients = torch.randn(6, *model.space.shape), []
    for parts in (1, 2):
        model.zero_grad()
        count = 6 // parts
        for part in range(parts):
            with batch_draws(7, part * count, count, 6):
                (sum(model(joined[part * count : (part + 1) * count], None).values()) / parts).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name, atol=1e-4, rtol=1e-4)


def test_a_network_without_a_representation_draws_and_computes_what_it_did():
    shared = {name: value for name, value in joint_dit().state_dict().items() if "token" not in name}
    assert shared.keys() == dit(data=PIXELS, **GENERATOR["dit"]).state_dict().keys()


def test_a_part_is_restored_with_its_representation():
    model = joint_dit(sampler={"name": "ddim", "steps": 2}).eval()
    restored = restore(model_part("generator", model, Facts(image_size=16)), GENERATORS)
    assert restored.spaces == model.spaces == {"data": PIXELS, "cond": None, "z": VECTORS}
    with torch.no_grad():
        one, other = (m.sample(None, SampleNoise(0, range(2), "t")) for m in (model, restored))
    assert torch.equal(one, other)


def test_holes_are_filled_with_and_without_a_kept_z():
    model = joint_dit(sampler={"name": "ddim", "steps": 2}).eval()
    image, hole = torch.rand(2, 3, 16, 16), torch.stack([box(16, 0, 0.25, 0.5, 1), box(16, 0, 0, 1, 1)])
    for z in (None, torch.randn(2, 6)):
        with torch.no_grad():
            filled = inpaint(model, Pixels(PixelsConfig(), 16), image, hole, z, lambda rows: SampleNoise(0, rows, "t"))
        known = ~hole[:, None].expand_as(image)
        assert torch.equal(filled[known], image[known])
        assert (filled != image).flatten(1).any(1).all()


def test_a_weaker_self_has_to_generate_the_representation_too():
    model, weak = joint_dit(sampler={"name": "ddim", "steps": 2}).eval(), joint_dit(depth=1).eval()
    guidance = model.config.guidance.with_scale(2)
    with torch.no_grad():
        samples = [model.sample(None, SampleNoise(0, range(2), "t"), guidance=guidance, weak=w) for w in (weak, model)]
    assert not torch.allclose(*samples)
    alone = dit(data=PIXELS, **GENERATOR["dit"])
    with pytest.raises(UserError, match="a weaker model to guide away from needs data of"):
        model.sample(None, SampleNoise(0, range(2), "t"), guidance=guidance, weak=alone)


@pytest.fixture(scope="module")
def joint_run(toy_run, tmp_path_factory):
    """The encoder of the toy run, and a generator of images and representations; nobody may change it."""
    folder = tmp_path_factory.mktemp("joint")
    (folder / "run").mkdir()
    (folder / "run" / "encoder").symlink_to(toy_run / "run" / "encoder")
    path = write(folder, **{f"generator__{key}": value for key, value in JOINT.items()})
    train("generator", path)
    return path


def test_a_run_needs_no_rdm_and_samples_travel_with_their_representations(joint_run, tmp_path):
    pipeline = Pipeline.from_pretrained(joint_run.parent / "run")
    assert pipeline.config.folder_name == "dit-joint"
    samples = pipeline.generate(range(3))
    assert samples.images.shape == (3, 3, 16, 16)
    assert samples.z.shape == (3, *pipeline.space.shape)
    assert torch.equal(pipeline.generate([2]).images, samples.images[2:])
    loaded = Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "saved"))
    again = loaded.generate(range(3))
    assert torch.equal(again.images, samples.images)
    assert torch.equal(again.z, samples.z)
    # Representations of images can be kept; what is redrawn has those of the images.
    z = loaded.represent(samples.images)
    assert torch.equal(loaded.generate(range(3), z=z).z, z)
    assert torch.equal(loaded.redraw(samples.images, 0.0).images, samples.images)
    assert not torch.equal(loaded.redraw(samples.images, 0.7, z=z.flip(0)).images, samples.images)
    for options, said in (({"guidance": 2.0}, "no condition to guide toward"), ({"rdm_steps": 3}, "no RDM generates")):
        with pytest.raises(UserError, match=said):
            loaded.sample(1, SamplingOptions(**options))


def test_the_tools_sample_and_compare_z_with_what_the_encoder_sees(joint_run, tmp_path):
    run = joint_run.parent / "run"
    assert tool("sample", run, "--num", 4, "--out", tmp_path / "gallery").returncode == 0
    metrics = ("--inception", "none", "--resamples", 2, "--no-memorization")
    done = tool("evaluate", run, "--num", 20, *metrics, "--out", tmp_path / "evaluation")
    assert done.returncode == 0, done.stderr
    assert "consistency" in done.stdout


def test_a_training_that_goes_on_ends_with_the_same_bits(joint_run, toy_run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "encoder").symlink_to(toy_run / "run" / "encoder")
    path = write(tmp_path, **{f"generator__{key}": value for key, value in JOINT.items()})
    train("generator", path, "generator.train.steps=9")
    resumed = train("generator", path, mode=Mode.RESUME).part()
    whole = RunFolder(joint_run.parent / "run").stage_folder("dit-joint").part()
    assert resumed.facts.step == whole.facts.step == 20
    assert resumed.facts.z == whole.facts.z
    assert all(torch.equal(value, resumed.tensors[name]) for name, value in whole.tensors.items())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["generator.condition=representation"], "condition is representation, but .* set condition to none"),
        (["generator.sampler.clip=true"], "a representation leaves: set sampler.clip to false"),
        (["generator.process.variance=learned_range"], "set process.variance to fixed_small"),
        (["generator.guidance.channels=2"], "set guidance.channels to null"),
        (["generator.joint_weight=0"], "joint_weight: .*greater than 0"),
        (["generator={name: mage, condition: none, joint_representation: true}"], "mage generates tokens"),
    ],
)
def test_what_does_not_go_with_it_is_refused_when_it_is_read(joint_run, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        load_experiment(joint_run, overrides)


def test_a_network_that_cannot_is_refused():
    network = GENERATORS.get("ldm")
    with pytest.raises(UserError, match="ldm does not support joint_representation: set it to false"):
        build(network.Config(**GENERATOR["ldm"] | JOINT), network, PIXELS, None, VECTORS)
