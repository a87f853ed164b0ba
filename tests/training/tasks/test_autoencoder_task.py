"""The task of an autoencoder: losses, the discriminator's weight, evaluations and exports."""

import math

import pytest
import torch
from torch import nn

from rcg.config import AutoencoderTrain
from rcg.core.checkpoint import Facts
from rcg.core.contracts import Space
from rcg.core.registry import AUTOENCODERS
from rcg.data.datasets.digits import DigitsConfig
from rcg.data.images import load_images
from rcg.diffusion.alignment import AlignmentHead
from rcg.encoding.autoencoder import restore_autoencoder
from rcg.training.tasks._discriminator import PatchDiscriminator, adaptive_weight, frozen, hinge_loss
from rcg.training.tasks.autoencoder import AutoencoderTask, Comparisons

SMALL = {"width": 32, "multipliers": [1, 1], "blocks": 1, "channels": 4, "attention": []}
BOTTLENECKS = {
    "vqgan": {"quantizer": {"codes": 32}},
    "vq": {"quantizer": {"codes": 32, "update": "gradient"}},
    "kl": {},
}


def task(name="vqgan", extractors=None, encoder=None, **train):
    torch.manual_seed(0)
    build = AUTOENCODERS.get(name)
    autoencoder = build(build.Config(**SMALL, **BOTTLENECKS[name]), 16)
    images, validation = load_images(DigitsConfig(image_size=16, limit=150))
    config = AutoencoderTrain(perceptual="none", discriminator_width=8, adversarial_start=5, **train)
    comparisons = Comparisons(None, extractors or {})
    head = None if encoder is None else AlignmentHead(config.align, SMALL["channels"], Space((4, 4, 3)))
    facts = Facts(image_size=16)
    return AutoencoderTask(autoencoder, images, validation, config, comparisons, facts, head, encoder)


class MeanColors(nn.Module):
    """An encoder whose patch features are the mean colors of 4 x 4 patches, about zero."""

    def patch_features(self, image):
        return nn.functional.avg_pool2d(image - 0.5, 4).flatten(2).transpose(1, 2)


def batch(t, count=16):
    return {"image": torch.stack([t.data[(i, i)]["image"] for i in range(count)])}


def learn(t, steps):
    """Train on the whole of the images with one optimizer for each module; return the first loss of every step."""
    optimizers = {name: torch.optim.AdamW(module.parameters(), lr=2e-3) for name, module in t.modules.items()}
    first = []
    for step in range(steps):
        images = {"image": torch.stack([t.data[((16 * step + i) % 128, 0)]["image"] for i in range(16)])}
        for name, losses in t.losses(images, step):
            optimizers[name].zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizers[name].step()
            if name == "autoencoder":
                first.append(float(losses["l1"].detach()))
    return first


@torch.no_grad()
def evaluated(t):
    return t.evaluate({"autoencoder": t.modules["autoencoder"].eval()}, 0)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_thirty_steps_on_digits_lower_the_loss(name):
    t = task(name, adversarial=0)
    before = evaluated(t)
    t.modules["autoencoder"].train()
    losses = learn(t, 30)
    after = evaluated(t)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert after.metrics["psnr"] > before.metrics["psnr"] + 2
    assert after.metrics["ssim"] > before.metrics["ssim"]
    assert ("perplexity" in after.metrics) == (name != "kl")
    assert after.score < before.score
    assert after.images["reconstructions"].shape[0] == 3


def test_an_evaluation_is_the_same_every_time_and_leaves_the_codebook_alone():
    t = task(adversarial=0)
    learn(t, 1)
    before = t.modules["autoencoder"].quantize.codebook.clone()
    assert evaluated(t).metrics == evaluated(t).metrics
    assert torch.equal(t.modules["autoencoder"].quantize.codebook, before)
    kl = task("kl", adversarial=0)
    assert evaluated(kl).metrics == evaluated(kl).metrics


def test_the_discriminator_starts_late_and_learns_from_real_and_reconstructed_images():
    t = task(adversarial=0.8)
    assert [name for name, _ in t.losses(batch(t), 4)] == ["autoencoder"]
    steps = t.losses(batch(t), 5)
    name, losses = next(steps)
    assert name == "autoencoder"
    assert losses.keys() == {"l1", "commitment", "adversarial"}
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None for p in t.modules["discriminator"].parameters()), (
        "it is frozen in the autoencoder's step"
    )
    before = [p.grad.clone() for p in t.modules["autoencoder"].parameters()]
    name, losses = next(steps)
    assert name == "discriminator"
    losses["discriminator"].backward()
    assert all(p.grad is not None for p in t.modules["discriminator"].parameters())
    after = [p.grad for p in t.modules["autoencoder"].parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer():
    last = nn.Parameter(torch.tensor([1.0, 2.0]))
    reconstruction, adversarial = (3 * last).sum(), (last * torch.tensor([0.0, 4.0])).sum()
    weight = adaptive_weight(reconstruction, adversarial, last)
    assert weight.item() == pytest.approx(3 * 2**0.5 / (4 + 1e-4))
    assert not weight.requires_grad
    assert adaptive_weight(1e9 * last.sum(), 0 * last.sum(), last).item() == pytest.approx(1e4)


def test_the_hinge_loss_of_given_scores():
    real, fake = torch.tensor([0.0, 2.0]), torch.tensor([0.5, -3.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (0.5 + 0.75))


@pytest.mark.parametrize(("side", "patches"), [(16, 6), (32, 6), (256, 30)])
def test_the_discriminator_scores_patches_and_each_sample_on_its_own(side, patches):
    discriminator = PatchDiscriminator(8, side)
    images = torch.rand(2, 3, side, side)
    scores = discriminator(images)
    assert scores.shape == (2, 1, patches, patches)
    torch.testing.assert_close(discriminator(images[:1]), scores[:1], atol=1e-5, rtol=1e-4)
    with frozen(discriminator) as module:
        assert not any(p.requires_grad for p in module.parameters())
    assert all(p.requires_grad for p in discriminator.parameters())


def test_the_scale_of_continuous_latents_is_measured_and_exported():
    for name in ("kl", "vq"):
        t = task(name, adversarial=0)
        part = t.export({"autoencoder": t.modules["autoencoder"]})
        restored = restore_autoencoder(part)
        images = torch.stack([t.train[i]["image"] for i in range(len(t.train))])
        latents = restored.encode(images)
        assert latents.mean().item() == pytest.approx(0, abs=0.02)
        assert latents.std().item() == pytest.approx(1, abs=0.02)
        assert part.facts.details["latent_std"] == pytest.approx(float(part.tensors["standardize.std"]))
        assert float(t.modules["autoencoder"].standardize.std) == 1


def test_extractors_compare_validation_images_with_their_reconstructions():
    t = task(extractors={"fd": nn.Flatten()}, adversarial=0)
    assert evaluated(t).metrics["fd"] > 0
    same = task(extractors={"fd": nn.Flatten()}, adversarial=0)
    model = same.modules["autoencoder"]
    forward = model.forward
    model.forward = lambda image: forward(image)._replace(image=image)
    assert evaluated(same).metrics["fd"] == pytest.approx(0, abs=1e-3)


def test_reconstructions_are_measured_in_float32_when_the_model_multiplies_in_bf16():
    torch.manual_seed(0)
    t = task(extractors={"fd": nn.Sequential(nn.Flatten(), nn.LazyLinear(8))}, adversarial=0)
    model = t.modules["autoencoder"]
    forward = model.forward
    model.forward = lambda image: forward(image)._replace(image=0.9 * image + 0.02)
    exact = evaluated(t).metrics
    with torch.autocast("cpu", torch.bfloat16):
        rounded = evaluated(t).metrics
    assert {name: rounded[name] for name in ("ssim", "psnr", "fd")} == {
        name: pytest.approx(exact[name], rel=1e-5) for name in ("ssim", "psnr", "fd")
    }


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_alignment_adds_the_negative_cosine_and_leaves_the_other_losses_alone(name):
    t, without = task(name, encoder=MeanColors(), adversarial=0, align={"weight": 0.7}), task(name, adversarial=0)
    module, images = t.modules["autoencoder"].train(), batch(t)
    without.modules["autoencoder"].train()
    torch.manual_seed(1)
    ((_, losses),) = t.losses(images, 0)
    torch.manual_seed(1)
    ((_, others),) = without.losses(images, 0)
    assert losses.pop("align").requires_grad
    assert losses == others
    torch.manual_seed(1)
    latent = module.autoencoder(images["image"]).latent
    colors = nn.functional.interpolate(images["image"] - 0.5, 8, mode="area")  # of 2 x 2 px: the latents' grid
    made = module.head(latent.flatten(2).transpose(1, 2), t.encoder.patch_features(images["image"]))
    blocks = nn.functional.interpolate(nn.functional.avg_pool2d(colors, 2), 8, mode="bilinear", antialias=True)
    cosine = nn.functional.cosine_similarity(module.head.project(latent.movedim(1, -1)), blocks.movedim(1, -1), dim=-1)
    assert made.item() == pytest.approx(-0.7 * cosine.mean().item(), abs=1e-5)


def test_aligned_latents_come_to_resemble_patch_features_and_are_exported_without_the_head():
    t = task("kl", encoder=MeanColors(), adversarial=0, align={"hidden": 16})
    t.modules["autoencoder"].train()
    first = t.modules["autoencoder"](batch(t)["image"], t.encoder.patch_features(batch(t)["image"])).losses["align"]
    learn(t, 12)
    report = evaluated(t)
    assert report.metrics["validation_align"] < min(-0.2, float(first.detach()) - 0.1)
    part = t.export(t.modules)
    assert not [name for name in part.tensors if "head" in name]
    assert restore_autoencoder(part).encode(batch(t)["image"]).std().item() == pytest.approx(1, abs=0.1)


def test_alignment_of_latents_that_are_to_stay_is_refused():
    with pytest.raises(ValueError, match="align changes the latents, which decoder_only keeps as they are"):
        AutoencoderTrain(decoder_only=True, init_from="a.safetensors", align={})


def test_the_divergence_has_its_closed_form():
    t = task("kl", adversarial=0)
    kl, (m, s) = t.modules["autoencoder"], (0.7, 0.3)
    kl.moments = lambda image: torch.cat([torch.full((2, 4, 8, 8), m), torch.full((2, 4, 8, 8), s)], dim=1)
    expected = 0.5 * (m**2 + s**2 - 1 - 2 * math.log(s)) * 4 * 8 * 8 / (3 * 16 * 16)
    assert kl(torch.rand(2, 3, 16, 16)).losses["kl"].item() == pytest.approx(1e-6 * expected, rel=1e-5)
