"""The autoencoder of a generator: it learns to reconstruct images through a narrow space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from rcg.config import AutoencoderTrain
from rcg.core.checkpoint import Part
from rcg.core.contracts import Reconstruction, Report
from rcg.data.images import Images
from rcg.encoding.autoencoder import autoencoder_part
from rcg.metrics.frechet import frechet_distance
from rcg.metrics.image import code_usage, perplexity, psnr, ssim
from rcg.metrics.inception import Inception
from rcg.metrics.perceptual import EncoderDistance, VGGDistance
from rcg.training.tasks._discriminator import PatchDiscriminator, adaptive_weight, fixed, hinge_loss
from rcg.training.tasks.generator import Conditioned
from rcg.visual.grids import grid

JUDGED = 2000
"""Most held-out images that an evaluation reconstructs."""
MEASURED = 1000
"""Most training images from which the scale of latents is measured."""
SHOWN = 32
BATCH = 50


class Comparisons(NamedTuple):
    """The feature spaces in which reconstructions are compared with images.

    Attributes:
        perceptual: a distance of images `(B, 3, H, W)` in [0, 1] to learn from, or None.
        judges: maps from images to features `(B, D)`, by the name of the Frechet distance that evaluations report.
    """

    perceptual: nn.Module | None
    judges: dict[str, nn.Module]


def compare(config: AutoencoderTrain, encoder: nn.Module | None, device: torch.device) -> Comparisons:
    """Build the comparisons that `config` asks for; `encoder` is the experiment's, if the perceptual loss uses it.

    Raises:
        UserError: a file of weights is missing, or does not fit.
    """
    perceptual: nn.Module | None = None
    judges: dict[str, nn.Module] = {}
    if encoder is not None:
        perceptual, judges["encoder_fd"] = EncoderDistance(encoder).to(device), encoder
    elif config.perceptual == "vgg":
        perceptual = VGGDistance(config.vgg).to(device)
    if config.inception:
        judges[f"rfid_{config.inception_tap}"] = Inception(config.inception, config.inception_tap).to(device)
    return Comparisons(perceptual, judges)


class AutoencoderTask:
    """Trains an autoencoder, and after a while a discriminator against it.

    Args:
        autoencoder: what is trained; calling it gives a `Reconstruction`.
        train: images to learn from, in all kept views.
        held_out: images for the metrics.
        config: losses and their weights.
        comparisons: feature spaces for the loss and for evaluations.
        facts: what the checkpoint says about its neighbors.
    """

    def __init__(
        self,
        autoencoder: Any,
        train: Images,
        held_out: Images,
        config: AutoencoderTrain,
        comparisons: Comparisons,
        facts: dict[str, Any],
    ) -> None:
        self.modules: dict[str, nn.Module] = {"autoencoder": autoencoder}
        if config.adversarial:
            self.modules["discriminator"] = PatchDiscriminator(config.discriminator_width, train.config.image_size)
        self.data = Conditioned(train, train.config.kept_views, None)
        self.train, self.held_out, self.config, self.facts = train, held_out, config, facts
        self.perceptual, self.judges = comparisons
        self.expected: dict[str, Tensor] = {}  # features of held-out images by judge, which never change

    def losses(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the autoencoder's losses, then, once it has come in, the discriminator's."""
        real = batch["image"]
        made = self.modules["autoencoder"](real)
        losses = self._faithfulness(made.image, real)
        adversarial = self.config.adversarial > 0 and step >= self.config.adversarial_start
        if adversarial:
            with fixed(_bare(self.modules["discriminator"])) as critic:
                verdict = -critic(made.image).float().mean()
            faithfulness = torch.stack(list(losses.values())).sum()
            weight = adaptive_weight(faithfulness, verdict, _bare(self.modules["autoencoder"]).last_layer)
            losses["adversarial"] = self.config.adversarial * weight * verdict
        yield "autoencoder", {**losses, **made.losses}
        if adversarial:
            both = torch.cat([real, made.image.detach().to(real.dtype)])
            verdicts = self.modules["discriminator"](both).float()
            yield "discriminator", {"discriminator": hinge_loss(*verdicts.chunk(2))}

    def after_step(self, step: int) -> None:
        """Nothing follows the weights."""

    def evaluate(self, models: Mapping[str, nn.Module], step: int) -> Report:
        """Reconstruct held-out images and compare.

        psnr is in dB, ssim in [-1, 1]; code_usage is the share of codes that occur, perplexity how many would, if all
        that occur did so equally often. A distance of a judge is the Frechet distance of its features of held-out
        images and of their reconstructions.
        """
        model: Any = models["autoencoder"]
        torch.manual_seed(0)  # the same draws at every evaluation; the next training step seeds again
        count = min(JUDGED, len(self.held_out))
        means: dict[str, float] = {}
        codes: list[Tensor] = []
        pairs: list[Tensor] = []
        made_features: dict[str, list[Tensor]] = {name: [] for name in self.judges}
        real_features: dict[str, list[Tensor]] = {name: [] for name in self.judges if name not in self.expected}
        for real in _batches(self.held_out, count, model):
            made = model(real)
            image = made.image.float().clamp(0, 1)
            with torch.autocast(real.device.type, enabled=False):  # judged in float32, however the model multiplies
                for name, value in self._judged(made, image, real).items():
                    means[name] = means.get(name, 0.0) + float(value) * len(real) / count
                for images, features in ((image, made_features), (real, real_features)):
                    for name, found in features.items():
                        found.append(self.judges[name](images).float().cpu())
            if made.codes is not None:
                codes.append(made.codes.flatten())
            if len(pairs) * BATCH < SHOWN:
                pairs.append(torch.stack([real, image], dim=1).flatten(0, 1).cpu())
        score = sum(value for name, value in means.items() if name.startswith("validation_"))
        if codes:
            counts = torch.bincount(torch.cat(codes), minlength=model.quantize.vocab)
            means |= {"code_usage": code_usage(counts), "perplexity": perplexity(counts)}
        self.expected |= {name: torch.cat(found) for name, found in real_features.items()}
        if count > 1:
            means |= {
                name: frechet_distance(self.expected[name], torch.cat(found)) for name, found in made_features.items()
            }
        return Report(means, {"reconstructions": grid(torch.cat(pairs)[: 2 * SHOWN], columns=8)}, score)

    def export(self, models: Mapping[str, nn.Module]) -> Part:
        """Keep the averaged autoencoder; the mean and deviation of continuous latents are measured and kept with it.

        Where only the decoder is trained, they stay those of the autoencoder that it started from.
        """
        model: Any = models["autoencoder"]
        part = autoencoder_part(model, dict(self.facts))
        if not hasattr(model, "standardize") or self.config.decoder_only:
            return part
        torch.manual_seed(0)  # what a run leaves does not depend on where it was interrupted
        with torch.no_grad():
            count = min(MEASURED, len(self.train))
            drawn = [model.draw(model.posterior(real)) for real in _batches(self.train, count, model)]
        latents = model.standardize.undo(torch.cat(drawn))
        mean, std = latents.mean(), latents.std()
        measured = {"standardize.mean": mean, "standardize.std": std}
        facts = {"latent_mean": float(mean), "latent_std": float(std)}
        return Part(part.kind, part.config, {**part.facts, **facts}, {**part.tensors, **measured})

    def _faithfulness(self, image: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Return the losses that compare `image` with the `real` one it reconstructs."""
        distance = F.l1_loss if self.config.pixel == "l1" else F.mse_loss
        losses: dict[str, Tensor] = {self.config.pixel: distance(image, real)}
        if self.perceptual is not None:
            losses["perceptual"] = self.config.perceptual_weight * self.perceptual(image, real)
        return losses

    def _judged(self, made: Reconstruction, image: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Return the mean losses and similarities of a batch."""
        losses = {**self._faithfulness(made.image.float(), real), **made.losses}
        similarities = {"psnr": psnr(image, real).mean(), "ssim": ssim(image, real).mean()}
        return {f"validation_{name}": loss for name, loss in losses.items()} | similarities


def _batches(images: Images, count: int, model: nn.Module) -> Iterator[Tensor]:
    """Yield the first views of the first `count` images, `(B, 3, S, S)`, where the model is."""
    device = next(model.parameters()).device
    loader: DataLoader[Any] = DataLoader(images, batch_size=BATCH, sampler=range(count))
    for batch in loader:
        yield batch["image"].to(device)


def _bare(module: Any) -> Any:
    """Return a module without what shares its gradients with other processes."""
    return getattr(module, "module", module)
