"""The task of an autoencoder: to reconstruct images through a narrow space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import AutoencoderTrain
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Encoder, EvalResult, Reconstruction, Task, TrainableAutoencoder
from rcg.data.images import Images
from rcg.data.loading import batches
from rcg.diffusion.alignment import AlignmentHead
from rcg.distributed.launch import unwrapped
from rcg.encoding.autoencoder import autoencoder_part
from rcg.metrics.frechet import frechet_distance
from rcg.metrics.image import code_usage, perplexity, psnr, ssim
from rcg.metrics.perceptual import EncoderDistance, VGGDistance
from rcg.training.tasks._discriminator import PatchDiscriminator, adaptive_weight, frozen, hinge_loss
from rcg.training.tasks.generator import ConditionedImages
from rcg.visual.grids import gallery

MAX_RECONSTRUCTED = 2000
"""Most validation images that an evaluation reconstructs."""
MAX_MEASURED = 1000
"""Most training images from which the scale of latents is measured."""
SHOWN = 32
"""Reconstructions in the picture of an evaluation."""
BATCH_SIZE = 50
"""Images of a batch in evaluations."""


class Comparisons(NamedTuple):
    """The feature spaces in which reconstructions are compared with images.

    Attributes:
        perceptual: a distance of images `(B, 3, H, W)` in [0, 1] to learn from, or None.
        extractors: maps from images to features `(B, D)`, by the name of the Frechet distance that is reported.
    """

    perceptual: nn.Module | None
    extractors: dict[str, nn.Module]


def build_comparisons(config: AutoencoderTrain, encoder: Encoder | None, device: torch.device) -> Comparisons:
    """Build the comparisons that `config` asks for; `encoder` is the experiment's, if a loss uses it.

    Raises:
        UserError: a file of weights is missing, or does not fit.
    """
    perceptual: nn.Module | None = None
    extractors: dict[str, nn.Module] = {}
    if encoder is not None:
        extractors["encoder_fd"] = encoder.to(device)
    if encoder is not None and config.perceptual == "encoder":
        perceptual = EncoderDistance(encoder).to(device)
    elif config.perceptual == "vgg":
        perceptual = VGGDistance(config.vgg).to(device)
    if config.inception:
        from rcg.metrics.inception import Inception  # slow to import, and rarely asked for

        extractors[f"rfid_{config.inception_tap}"] = Inception(config.inception, config.inception_tap).to(device)
    return Comparisons(perceptual, extractors)


class AlignedAutoencoder(nn.Module):
    """An autoencoder and the head that aligns its latents, trained as one module; only the autoencoder is exported."""

    def __init__(self, autoencoder: TrainableAutoencoder, head: AlignmentHead) -> None:
        """Train `head`, of tokens with `autoencoder.channels`, with `autoencoder`."""
        super().__init__()
        self.autoencoder, self.head = autoencoder, head

    def forward(self, image: Tensor, patches: Tensor) -> Reconstruction:
        """Reconstruct images `(B, 3, H, W)` in [0, 1]; the losses have one more, `align`.

        `patches` `(B, N, D)` are the frozen encoder's patch features of the same images.
        """
        made: Reconstruction = self.autoencoder(image)
        align = self.head(made.latent.flatten(2).transpose(1, 2), patches)
        return made._replace(losses={**made.losses, "align": align})


def trained_modules(
    autoencoder: TrainableAutoencoder, head: AlignmentHead | None, config: AutoencoderTrain, image_size: int
) -> dict[str, nn.Module]:
    """Return an autoencoder, with the head that aligns it, and a new discriminator if there is a loss for it."""
    modules: dict[str, nn.Module] = {
        "autoencoder": autoencoder if head is None else AlignedAutoencoder(autoencoder, head)
    }
    if config.adversarial:
        modules["discriminator"] = PatchDiscriminator(config.discriminator_width, image_size)
    return modules


class AutoencoderTask(Task):
    """Trains an autoencoder, and from some step on a discriminator against it.

    Args:
        autoencoder: what is trained.
        train: images to learn from, in all cached views.
        validation: images for the metrics.
        config: losses and their weights.
        comparisons: feature spaces for the loss and for evaluations.
        facts: what the checkpoint says about its neighbors.
        head: what aligns the latents; None: without.
        encoder: the frozen encoder whose patch features they are aligned with.
    """

    def __init__(
        self,
        autoencoder: TrainableAutoencoder,
        train: Images,
        validation: Images,
        config: AutoencoderTrain,
        comparisons: Comparisons,
        facts: Facts,
        head: AlignmentHead | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        self.modules = trained_modules(autoencoder, head, config, train.config.image_size)
        self.encoder = encoder
        self.data = ConditionedImages(train, train.config.cached_views, None)
        self.train, self.validation, self.config, self.facts = train, validation, config, facts
        self.perceptual, self.extractors = comparisons
        self.real_features: dict[str, Tensor] = {}  # of validation images by extractor, which never change

    def losses(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the autoencoder's losses, then, from `adversarial_start` on, the discriminator's."""
        real = batch["image"]
        made = self._reconstruct(self.modules["autoencoder"], real)
        losses = self._reconstruction_losses(made.image, real)
        adversarial = self.config.adversarial > 0 and step >= self.config.adversarial_start
        if adversarial:
            with frozen(unwrapped(self.modules["discriminator"])) as discriminator:
                score = -discriminator(made.image).float().mean()
            total = torch.stack(list(losses.values())).sum()
            weight = adaptive_weight(total, score, _autoencoder_in(unwrapped(self.modules["autoencoder"])).last_layer)
            losses["adversarial"] = self.config.adversarial * weight * score
        yield "autoencoder", {**losses, **made.losses}
        if adversarial:
            both = torch.cat([real, made.image.detach().to(real.dtype)])
            scores = self.modules["discriminator"](both).float()
            yield "discriminator", {"discriminator": hinge_loss(*scores.chunk(2))}

    def evaluate(self, models: Mapping[str, nn.Module], step: int) -> EvalResult:
        """Reconstruct validation images and compare.

        psnr is in dB, ssim in [-1, 1]; code_usage is the share of codes that occur, perplexity how many would, if all
        that occur did so equally often. The distance of an extractor is the Frechet distance of its features of
        validation images and of their reconstructions.
        """
        model = models["autoencoder"]
        torch.manual_seed(0)  # the same draws at every evaluation; the next training step seeds again
        count = min(MAX_RECONSTRUCTED, len(self.validation))
        means: dict[str, float] = {}
        codes: list[Tensor] = []
        pairs: list[Tensor] = []
        made_features: dict[str, list[Tensor]] = {name: [] for name in self.extractors}
        real_features: dict[str, list[Tensor]] = {n: [] for n in self.extractors if n not in self.real_features}

        # Reconstruct batch by batch; measured in float32, whatever the precision of the model.
        for real in _first_views(self.validation, count, model):
            made = self._reconstruct(model, real)
            image = made.image.float().clamp(0, 1)
            with torch.autocast(real.device.type, enabled=False):
                for name, value in self._mean_metrics(made, image, real).items():
                    means[name] = means.get(name, 0.0) + float(value) * len(real) / count
                for images, features in ((image, made_features), (real, real_features)):
                    for name, batches_of_features in features.items():
                        batches_of_features.append(self.extractors[name](images).float().cpu())
            if made.codes is not None:
                codes.append(made.codes.flatten())
            if len(pairs) * BATCH_SIZE < SHOWN:
                pairs.append(torch.stack([real, image], dim=1).flatten(0, 1).cpu())

        # Metrics of all images together.
        score = sum(value for name, value in means.items() if name.startswith("validation_"))
        if codes:
            counts = torch.bincount(torch.cat(codes), minlength=_autoencoder_in(model).vocab or 0)
            means |= {"code_usage": code_usage(counts), "perplexity": perplexity(counts)}
        self.real_features |= {name: torch.cat(features) for name, features in real_features.items()}
        if count > 1:
            for name, parts in made_features.items():
                means[name] = frechet_distance(self.real_features[name], torch.cat(parts))
        shown = torch.cat(pairs)[: 2 * SHOWN]
        title = f"step {step}: validation images, each beside its reconstruction"
        captions = ["real", "reconstructed"] * (len(shown) // 2)
        return EvalResult(means, {"reconstructions": gallery(shown, captions, title)}, score)

    def export(self, models: Mapping[str, nn.Module]) -> Part:
        """Export the averaged autoencoder, with the mean and std of continuous latents, which are measured here.

        Where only the decoder is trained, they stay those of the autoencoder that it started from.
        """
        model: Any = _autoencoder_in(models["autoencoder"])
        part = autoencoder_part(model, self.facts)
        if model.standardize is None or model.trains_decoder_only:
            return part
        mean, std = measure_latents(model, self.train)
        facts = part.facts.model_copy(update={"details": {"latent_mean": float(mean), "latent_std": float(std)}})
        tensors = {**part.tensors, "standardize.mean": mean, "standardize.std": std}
        return replace(part, facts=facts, tensors=tensors)

    def _reconstruct(self, module: nn.Module, real: Tensor) -> Reconstruction:
        """Reconstruct images with what is trained, or its average."""
        inputs = [real]
        if self.encoder is not None:
            with torch.no_grad():
                inputs.append(self.encoder.patch_features(real))
        made: Reconstruction = module(*inputs)
        return made

    def _reconstruction_losses(self, image: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Return the losses that compare `image` with the `real` one it reconstructs."""
        distance = F.l1_loss if self.config.pixel == "l1" else F.mse_loss
        losses: dict[str, Tensor] = {self.config.pixel: distance(image, real)}
        if self.perceptual is not None:
            losses["perceptual"] = self.config.perceptual_weight * self.perceptual(image, real)
        return losses

    def _mean_metrics(self, made: Reconstruction, image: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Return the mean losses and similarities of a batch."""
        losses = {**self._reconstruction_losses(made.image.float(), real), **made.losses}
        similarities = {"psnr": psnr(image, real).mean(), "ssim": ssim(image, real).mean()}
        return {f"validation_{name}": loss for name, loss in losses.items()} | similarities


@torch.no_grad()
def measure_latents(autoencoder: Any, images: Images) -> tuple[Tensor, Tensor]:
    """Return mean and std of continuous latents of training images, in the shape of the autoencoder's `standardize`."""
    torch.manual_seed(0)  # the export of a run does not depend on where it was interrupted
    count = min(MAX_MEASURED, len(images))
    standardized = torch.cat([autoencoder.encode(real) for real in _first_views(images, count, autoencoder)])
    latents = autoencoder.standardize.undo(standardized)
    if autoencoder.standardize.mean.ndim == 0:
        return latents.mean(), latents.std()
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    # A feature that never changes, as rectified ones may be, is left as it is.
    return mean[:, None, None], torch.where(std > 1e-6, std, 1.0)[:, None, None]


def _autoencoder_in(module: nn.Module) -> TrainableAutoencoder:
    """Return the autoencoder in what is trained."""
    autoencoder = module.autoencoder if isinstance(module, AlignedAutoencoder) else module
    assert isinstance(autoencoder, TrainableAutoencoder)
    return autoencoder


def _first_views(images: Images, count: int, model: nn.Module) -> Iterator[Tensor]:
    """Yield the first views of the first `count` images, `(B, 3, S, S)`, where the model is."""
    device = next(model.parameters()).device
    for batch in batches(images, range(count), BATCH_SIZE):
        yield batch["image"].to(device)
