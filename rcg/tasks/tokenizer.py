"""The autoencoder of a generator: it learns to reconstruct images through a narrow space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.autoencoder import autoencoder_part
from rcg.checkpoint import Part
from rcg.config import TokenizerTrain
from rcg.contracts import Reconstruction, Report
from rcg.data import Images
from rcg.gallery import grid
from rcg.metrics.frechet import frechet_distance
from rcg.metrics.image import code_usage, perplexity, psnr, ssim
from rcg.tasks._adversary import PatchDiscriminator, adaptive_weight, fixed, hinge_loss
from rcg.tasks.generator import Conditioned

JUDGED = 2000
"""Most held-out images that an evaluation reconstructs."""
MEASURED = 1000
"""Most training images from which the scale of latents is measured."""
SHOWN = 32
BATCH = 50


class Judge(NamedTuple):
    """A map from images `(B, 3, H, W)` in [0, 1] to features `(B, D)`, and what the distance in them is called."""

    name: str
    features: nn.Module


class TokenizerTask:
    """Trains an autoencoder, and after a while a discriminator against it.

    Args:
        autoencoder: what is trained; calling it gives a `Reconstruction`.
        train: images to learn from, in all kept views.
        held_out: images for the metrics.
        config: losses and their weights.
        perceptual: a distance of images `(B, 3, H, W)` in [0, 1], or None.
        judges: feature spaces in which held-out images are compared with their reconstructions.
        facts: what the checkpoint says about its neighbours.
    """

    def __init__(
        self,
        autoencoder: Any,
        train: Images,
        held_out: Images,
        config: TokenizerTrain,
        perceptual: nn.Module | None,
        judges: list[Judge],
        facts: dict[str, Any],
    ) -> None:
        # Convolutions on the CPU, and in half precision everywhere, are faster with channels last.
        self.modules: dict[str, nn.Module] = {"autoencoder": autoencoder.to(memory_format=torch.channels_last)}
        if config.adversarial:
            critic = PatchDiscriminator(config.discriminator_width, train.config.image_size)
            self.modules["discriminator"] = critic.to(memory_format=torch.channels_last)
        self.data = Conditioned(train, train.config.kept_views, None)
        self.train, self.held_out, self.config, self.facts = train, held_out, config, facts
        self.perceptual, self.judges = perceptual, judges

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
        images = _stack(self.held_out, JUDGED).to(next(model.parameters()).device)
        made = [model(part) for part in images.split(BATCH)]
        painted = torch.cat([part.image.float() for part in made])
        losses = self._mean_losses(made, images)
        shown = painted.clamp(0, 1)
        metrics = {f"validation_{name}": value for name, value in losses.items()}
        metrics |= {"psnr": float(psnr(shown, images).mean()), "ssim": float(ssim(shown, images).mean())}
        if made[0].codes is not None:
            codes = torch.cat([part.codes.flatten() for part in made])
            counts = torch.bincount(codes, minlength=model.quantise.vocab)
            metrics |= {"code_usage": code_usage(counts), "perplexity": perplexity(counts)}
        for judge in self.judges if len(images) > 1 else ():
            metrics[judge.name] = frechet_distance(*(_features(judge.features, x) for x in (images, shown)))
        pairs = torch.stack([images[:SHOWN], shown[:SHOWN]], dim=1).flatten(0, 1)
        return Report(metrics, {"reconstructions": grid(pairs.cpu(), columns=8)}, score=sum(losses.values()))

    def export(self, models: Mapping[str, nn.Module]) -> Part:
        """Keep the averaged autoencoder; the mean and deviation of continuous latents are measured and kept with it."""
        model: Any = models["autoencoder"]
        part = autoencoder_part(model, dict(self.facts))
        if not hasattr(model, "standardise"):
            return part
        torch.manual_seed(0)  # what a run leaves does not depend on where it was interrupted
        with torch.no_grad():
            images = _stack(self.train, MEASURED).to(next(model.parameters()).device)
            drawn = torch.cat([model.draw(model.posterior(part)) for part in images.split(BATCH)])
        latents = model.standardise.undo(drawn)
        mean, std = latents.mean(), latents.std()
        measured = {"standardise.mean": mean, "standardise.std": std}
        facts = {"latent_mean": float(mean), "latent_std": float(std)}
        return Part(part.kind, part.config, {**part.facts, **facts}, {**part.tensors, **measured})

    def _faithfulness(self, image: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Return the losses that compare `image` with the `real` one it reconstructs."""
        distance = F.l1_loss if self.config.pixel == "l1" else F.mse_loss
        losses: dict[str, Tensor] = {self.config.pixel: distance(image, real)}
        if self.perceptual is not None:
            losses["perceptual"] = self.config.perceptual_weight * self.perceptual(image, real)
        return losses

    def _mean_losses(self, made: list[Reconstruction], images: Tensor) -> dict[str, float]:
        """Average the losses over batches, each weighing as many images as it has."""
        means: dict[str, float] = {}
        for part, real in zip(made, images.split(BATCH), strict=True):
            for name, loss in {**self._faithfulness(part.image, real), **part.losses}.items():
                means[name] = means.get(name, 0.0) + float(loss) * len(real) / len(images)
        return means


def _stack(images: Images, most: int) -> Tensor:
    """Return the first views of up to `most` images, `(N, 3, S, S)`."""
    return torch.stack([images[i]["image"] for i in range(min(most, len(images)))])


def _features(network: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([network(part).float().cpu() for part in images.split(BATCH)])


def _bare(module: Any) -> Any:
    """Return a module without what shares its gradients with other processes."""
    return getattr(module, "module", module)
