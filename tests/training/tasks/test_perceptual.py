"""The perceptual loss of estimates of clean images: its size, where it counts, and who may judge afterwards."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from rcg.config import PerceptualConfig, load_experiment
from rcg.core.contracts import Encoder
from rcg.core.errors import UserError
from rcg.core.registry import GENERATORS
from rcg.core.rng import batch_draws
from rcg.diffusion.estimate_loss import Estimate, WithEstimateLoss
from rcg.diffusion.model import build
from rcg.evaluation.plan import partial_judges
from rcg.generators.autoencoders.pixels import Pixels, PixelsConfig
from rcg.metrics.perceptual import unit_distance
from rcg.training.tasks.perceptual import PerceptualLoss
from tests.models import dit
from tests.small import GENERATOR, PIXELS
from tests.toy import MAGE, tool, train, write

RANDOM = "{name: moco_v3, arch: resnet18, width: 4, depth: 1, projector_hidden: 8, projector_dim: 6, weights: none}"


class Pooled(Encoder):
    """Four averages of each channel."""

    def __init__(self):
        super().__init__(None, 8)

    def forward(self, image):
        return nn.functional.adaptive_avg_pool2d(image, 2).flatten(1)


def perceptual(**config):
    return PerceptualLoss(PerceptualConfig(**config), Pooled(), Pixels(PixelsConfig(), 8))


def estimate(noise, seed=0):
    """Estimates that are the output of a network, which learns by the squared error."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(len(noise), 3, 8, 8, generator=g) - 0.5
    output = (torch.rand(len(noise), 1, 3, 8, 8, generator=g) - 0.5).requires_grad_()
    return Estimate(output, output[:, 0], x, torch.tensor(noise), (output[:, 0] - x).square().mean())


def test_each_images_gradient_is_as_large_as_that_of_the_process_and_points_where_the_distance_falls():
    made = estimate([0.1, 0.5, 0.6])
    loss = perceptual(weight=0.5)(made)["perceptual"]
    (gradient,) = torch.autograd.grad(loss, made.output, retain_graph=True)
    (reference,) = torch.autograd.grad(made.loss, made.output, retain_graph=True)
    # An independent way: the distances of the features themselves, image by image.
    features = [Pooled()((data + 1) / 2) for data in (made.x0, made.x)]
    distances = [unit_distance(a, b) for a, b in zip(*(f.split(1) for f in features))]
    for i, distance in enumerate(distances):
        (slope,) = torch.autograd.grad(distance, made.output, retain_graph=True)
        expected = 0.5 * reference[i].norm() * slope[i] / slope[i].norm()
        torch.testing.assert_close(gradient[i], expected, rtol=1e-4, atol=1e-9)
    assert loss.item() == pytest.approx(torch.stack(distances).mean().item(), rel=1e-4)


def test_an_images_gradient_depends_on_no_other_image():
    gradients = []
    for parts in ([slice(None)], [slice(0, 1), slice(1, 4)]):
        whole = estimate([0.2, 0.9, 0.7, 0.3])
        for part in parts:
            output, x = whole.output[part], whole.x[part]
            made = Estimate(output, output[:, 0], x, whole.noise[part], (output[:, 0] - x).square().mean())
            (perceptual()(made)["perceptual"] * len(x) / 4).backward(retain_graph=True)
        gradients.append(whole.output.grad)
    torch.testing.assert_close(*gradients)


def test_images_with_more_noise_count_as_equal():
    made = estimate([0.2, 0.9, 0.7, 0.71])
    loss = perceptual()(made)["perceptual"]
    (gradient,) = torch.autograd.grad(loss, made.output)
    assert [bool(row.any()) for row in gradient] == [True, False, True, False]
    nothing = estimate([0.8, 0.9])
    loss = perceptual()(nothing)["perceptual"]
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, nothing.output)[0].any()


@pytest.mark.parametrize("process", [{"name": "gaussian", "predict": "v"}, {"name": "flow"}])
def test_the_noise_is_a_flows_time_and_a_perfect_network_estimates_the_data(process):
    m, x, seen = dit(process=process), torch.randn(5, 3, 8, 8), []
    with batch_draws(3, 0, 5, 5):
        t, noise = m.process.draw(x)

    def ideal(x_t, t, cond):
        return m.process.target(x, t, noise)[:, None]

    with batch_draws(3, 0, 5, 5):
        losses = WithEstimateLoss(m.process, lambda made: seen.append(made) or {}).loss(ideal, x, None)
    (made,) = seen
    assert losses["mse"].item() == 0
    torch.testing.assert_close(made.x0, x, atol=2e-3, rtol=2e-3)
    alpha, sigma = m.process.scales(t)
    torch.testing.assert_close(made.noise, 1 / (1 + alpha / sigma))
    if process["name"] == "flow":
        torch.testing.assert_close(made.noise, t / 1000)


@pytest.mark.parametrize("self_condition", [False, True])
def test_it_leaves_the_other_losses_and_the_evaluations_of_the_network_alone(self_condition):
    m, x = dit(self_condition=self_condition), torch.randn(6, 3, 8, 8).clamp(-1, 1)
    found, calls = [], []
    m.network.register_forward_hook(lambda *_: calls.append(1))
    for extra in (None, perceptual(until=1.0)):
        with batch_draws(0, 0, 6, 6):
            found.append(m(x, None, extra))
    assert set(found[1]) - set(found[0]) == {"perceptual"}
    assert torch.equal(found[0]["mse"], found[1]["mse"])
    assert len(calls) == 2 * (1 + self_condition)
    found[1]["perceptual"].backward()
    assert all(p.grad is not None for p in m.network.parameters())


@pytest.mark.parametrize("name", sorted(GENERATOR.keys() - {"mage"}))
def test_every_generator_of_pixels_learns_by_it(name):
    network = GENERATORS.get(name)
    m = build(network.Config(condition="none", **GENERATOR[name]), network, PIXELS, None)
    for p in m.parameters():
        nn.init.normal_(p, std=0.1)
    m(torch.rand(4, 3, 16, 16), None, perceptual(until=1.0))["perceptual"].backward()
    assert all(torch.isfinite(p.grad).all() for p in m.parameters())
    assert all(p.grad.any() for p in m.network.parameters() if p.ndim > 1)


class Judge(SimpleNamespace):
    """An extractor that compares in the space of an encoder."""

    def has_encoder(self, name):
        return self.encoder == name


def test_a_judge_that_a_generator_did_not_learn_with_is_enough():
    own, other = Judge(name="own", encoder="a:1"), Judge(name="other", encoder="b:2")
    assert not list(partial_judges("", [own]))
    assert not list(partial_judges("a:1", [other]))
    (warning,) = partial_judges("a:1", [own, other])
    assert warning.endswith("distances in the space of own flatter its images")
    with pytest.raises(UserError, match="the generator learned to please a "):
        list(partial_judges("a:1", [own]))


SETTINGS = {"steps": 2, "batch_size": 4, "log_every": 2, "precision": "no", "tracker": "none"}


def test_the_encoder_that_a_generator_learned_to_please_is_no_judge_alone(tmp_path):
    settings = {"encoder__weights": "none", "generator__condition": "none", "generator__train": SETTINGS}
    stage = train("generator", write(tmp_path, generator__perceptual={}, **settings))
    assert '"perceptual": ' in stage.log.read_text()
    assert stage.part().facts.perceptual.startswith("moco_v3:")
    options = ("--num", 8, "--resamples", 0, "--inception", "none", "--no-memorization", "--out", tmp_path / "out")
    refused = tool("evaluate", tmp_path / "run", *options)
    assert refused.returncode == 2
    assert "so that encoder alone cannot judge its images: add a judge" in refused.stderr
    judged = tool("evaluate", tmp_path / "run", *options, "--encoder", "own", "--encoder", RANDOM)
    assert judged.returncode == 0, judged.stderr
    assert (
        "distances in the space of own-moco_v3 flatter its images"
        in next((tmp_path / "out").rglob("report.md")).read_text()
    )


def test_a_training_goes_on_with_the_same_encoder_alone(tmp_path):
    section = tmp_path / "judge.yaml"
    section.write_text(RANDOM)
    path = write(tmp_path, generator__condition="none", generator__train=SETTINGS)
    option = f"generator.perceptual.encoder={section}"
    train("generator", path, option)
    section.write_text(yaml.safe_dump(yaml.safe_load(RANDOM) | {"width": 6}))
    resumed = tool("train_pixel", path, option, "generator.train.steps=4", "--resume")
    assert resumed.returncode == 2
    assert "its perceptual loss is that of moco_v3:" in resumed.stderr


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"generator": MAGE | {"perceptual": {}}}, "with the autoencoder toy_tokenizer a generator estimates latents"),
        ({"generator__perceptual": {}, "generator__autoencoder": "kl"}, "leave perceptual out, or set autoencoder to"),
        ({"generator__perceptual": {"weight": 0}}, "generator.perceptual.weight"),
        ({"generator__perceptual": {"until": 0}}, "generator.perceptual.until"),
        ({"generator__perceptual": {}, "generator__train__score": "fd"}, "by the encoder that perceptual learns to"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, sentence, tmp_path, toy_autoencoder):
    with pytest.raises(UserError, match=sentence):
        load_experiment(write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("encoder", "sentence"),
    [("own", "holds no trained encoder"), ("nowhere.yaml", "there is no file nowhere.yaml"), ("moco_v3", "no weights")],
)
def test_an_encoder_that_is_not_there_is_refused(encoder, sentence, tmp_path):
    path = write(tmp_path, generator__perceptual={"encoder": encoder}, generator__condition="none")
    with pytest.raises(UserError, match=sentence):
        train("generator", path)
    assert not (tmp_path / "run").exists()
