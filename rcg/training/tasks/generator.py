"""The task of the pixel generator: to generate an image from its representation, its label, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Autoencoder, Encoder, EvalResult, Task
from rcg.core.rng import SampleNoise
from rcg.data.images import Images
from rcg.data.loading import Key
from rcg.data.views import ShardedViews
from rcg.diffusion.alignment import AlignedModel
from rcg.diffusion.joint import JointModel
from rcg.diffusion.model import GenerativeModel, model_part
from rcg.encoding.encoder import encoder_id, encoder_part
from rcg.encoding.representation import space_of
from rcg.training.clock import Clock
from rcg.training.tasks.perceptual import PerceptualLoss
from rcg.visual.grids import gallery

MAX_EVALUATED = 256
"""Most validation images that the loss is measured on."""
SHOWN = 32
"""Most validation images beside which samples are shown."""
CONDITION_KEYS = {"none": None, "class": "label", "cluster": "label", "representation": "z"}
"""What of a batch is the condition."""


class ConditionedImages(Dataset[dict[str, Tensor]]):
    """Images, or their latents, with their conditions; one of the cached views is taken at random.

    Args:
        images: N images.
        views: number of cached views.
        z: representations `(N, V, D)` of exactly these views, or None.
        latents: posteriors `(N, V, *S)` of exactly these views, which are then served in place of the images, or None.
        labels: `(N, V)` of exactly these views, in place of the images' own, or None.
    """

    def __init__(
        self,
        images: Images,
        views: int,
        z: ShardedViews | None,
        latents: ShardedViews | None = None,
        labels: Tensor | None = None,
    ) -> None:
        self.images, self.views, self.z, self.latents, self.labels = images, views, z, latents, labels
        self.in_memory = images.in_memory or latents is not None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """Return the image `(3, S, S)` or its posterior `(*S)`, its label and, where there are any, its z `(D,)`."""
        position, draw = key
        view = draw % self.views
        item = {"label": self.images.label(position) if self.labels is None else self.labels[position, view]}
        if self.latents is None:
            item["image"] = self.images[(position, view)]["image"]
        else:
            item["latent"] = self.latents.rows([position], [view])[0]
        if self.z is not None:
            item["z"] = self.z.rows([position], [view])[0]
        return item


class GeneratorTask(Task):
    """Trains a generative model in the latent space of a frozen autoencoder.

    Args:
        model: the generator, with what aligns its hidden tokens if anything does.
        autoencoder: latents <-> images.
        train: images and conditions to learn from.
        validation: images and conditions for the loss and the sample grid of evaluations.
        facts: what the checkpoint says about its neighbors.
        encoder: the frozen encoder whose patch tokens these are aligned with; None: without alignment.
        perceptual: a loss of the model's estimates of clean images; None: without.
        clock: judges samples of evaluations; None: they are only shown.
    """

    def __init__(
        self,
        model: GenerativeModel | AlignedModel,
        autoencoder: Autoencoder,
        train: ConditionedImages,
        validation: ConditionedImages,
        facts: Facts,
        encoder: Encoder | None = None,
        perceptual: PerceptualLoss | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.modules: dict[str, nn.Module] = {"generator": model}
        model = model_in(model)
        self.autoencoder, self.data, self.validation = autoencoder, train, validation
        self.facts = facts.model_copy(update=model.spaces)
        self.encoder, self.perceptual, self.clock, self.pair = encoder, perceptual, clock, model.pair
        self.key = CONDITION_KEYS[model.config.condition]

    def losses(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the denoising loss of a batch, and the alignment and perceptual losses if there are any."""
        inputs = [self.learned(batch), self.condition(batch, self.modules["generator"])]
        if self.encoder is not None:
            with torch.no_grad():
                inputs.append(self.encoder.patch_features(batch["image"]))
        yield "generator", self.modules["generator"](*inputs, estimate_loss=self.perceptual)

    def learned(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what the model learns to generate: the latents of a batch, with z beside them where it is a pair."""
        latents = self.latents(batch)
        return latents if self.pair is None else self.pair.join(latents, batch["z"])

    @torch.no_grad()
    def latents(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the latents `(B, *S)` of a batch."""
        if "latent" in batch:
            return self.autoencoder.draw(batch["latent"])
        return self.autoencoder.encode(batch["image"])

    def condition(self, batch: Mapping[str, Tensor], module: nn.Module) -> Tensor | None:
        """Return the condition of a batch for what is trained, or its average."""
        return None if self.key is None else batch[self.key]

    def evaluate(self, models: Mapping[str, nn.Module], step: int) -> EvalResult:
        """Return the loss on validation images, and validation images beside samples from their conditions.

        With a clock more of these are sampled and judged, see `rcg.training.clock.Clock.measure`.
        """
        module = models["generator"]
        model = model_in(module)

        # The loss, with the same noise at every evaluation; the next training step seeds again.
        batch = self._first(range(min(MAX_EVALUATED, len(self.validation))), model)
        torch.manual_seed(0)
        losses = model(self.learned(batch), self.condition(batch, module))
        score = float(torch.stack(list(losses.values())).sum())
        metrics = {f"validation_{name}": float(value) for name, value in losses.items()}

        # Samples from the conditions of the first images.
        shown = min(SHOWN, len(batch["image"]))
        count = max(shown, self.clock.count if self.clock else 0)
        images = torch.cat(
            [self._samples(range(start, min(start + SHOWN, count)), module) for start in range(0, count, SHOWN)]
        )
        if self.clock is not None:
            metrics |= self.clock.measure(images[: self.clock.count], step)
            if self.clock.config.score == "fd":
                score = metrics["fd"]
        images = images[:shown]
        title, captions = f"step {step}: samples without a condition", [""] * len(images)
        if self.key is not None:
            title = f"step {step}: validation images, each beside a sample from its condition"
            captions = ["real", "sample"] * len(images)
            images = torch.stack([batch["image"][:shown], images], dim=1).flatten(0, 1)
        return EvalResult(metrics, {"samples": gallery(images.cpu(), captions, title)}, score)

    def _first(self, positions: range, model: GenerativeModel) -> dict[str, Tensor]:
        """Return a batch of validation images with their conditions, on the model's device."""
        items = [self.validation[(i, 0)] for i in positions]
        device = next(model.parameters()).device
        return {name: torch.stack([item[name] for item in items]).to(device) for name in items[0]}

    def _samples(self, positions: range, module: nn.Module) -> Tensor:
        """Return samples `(B, 3, S, S)` from the conditions of validation images."""
        model = model_in(module)
        batch = self._first(positions, model)
        noise = SampleNoise(0, positions, "generator", batch["image"].device)
        latent, _ = model.split(model.sample(self.condition(batch, module), noise))
        return self.autoencoder.decode(latent.float() if latent.is_floating_point() else latent).float()

    def export(self, models: Mapping[str, nn.Module]) -> Part:
        """Export the averaged model, without what only training needs."""
        return model_part("generator", model_in(models["generator"]), self.facts)

    def compiled(self, name: str) -> nn.Module:
        """Return the network, which is what `train.compile` compiles."""
        return model_in(self.modules[name]).network


class JointTask(GeneratorTask):
    """Trains a generative model together with the encoder of its condition, by the model's loss alone.

    Args:
        joint: both of them.
        autoencoder: latents <-> images.
        train: images to learn from.
        validation: images for the loss and the sample grid of evaluations.
        facts: what the checkpoint says about its neighbors.
        encoder_path: where the trained encoder is kept.
        perceptual: as for `GeneratorTask`.
        clock: judges samples of evaluations; None: they are only shown.
    """

    def __init__(
        self,
        joint: JointModel,
        autoencoder: Autoencoder,
        train: ConditionedImages,
        validation: ConditionedImages,
        facts: Facts,
        encoder_path: Path,
        perceptual: PerceptualLoss | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(joint.model, autoencoder, train, validation, facts, perceptual=perceptual, clock=clock)
        self.modules = {"generator": joint}
        # The space of the condition has a name only when the encoder is written.
        self.facts = self.facts.model_copy(update={"cond": None})
        self.encoder_path = encoder_path

    def losses(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the denoising loss of a batch, given what the encoder makes of its images."""
        yield "generator", self.modules["generator"](self.latents(batch), batch["image"], self.perceptual)

    def condition(self, batch: Mapping[str, Tensor], module: nn.Module) -> Tensor:
        """Return what the encoder makes of a batch."""
        assert isinstance(module, JointModel)
        return module.represent(batch["image"])

    def other_parts(self, models: Mapping[str, nn.Module]) -> Iterator[tuple[Path, Part]]:
        """Yield the averaged encoder."""
        joint: Any = models["generator"]
        facts = self.facts.model_copy(update={"data": None, "classes": ()})  # it learns nothing of classes
        yield self.encoder_path, encoder_part(joint.encoder, facts)

    def export(self, models: Mapping[str, nn.Module]) -> Part:
        """Export the averaged model, conditioned on what the averaged encoder makes of images."""
        joint: Any = models["generator"]
        part = super().export(models)
        cond = space_of(joint.encoder, encoder_id(joint.encoder), joint.transform)
        return replace(part, facts=part.facts.model_copy(update={"cond": cond}))


def model_in(module: nn.Module) -> GenerativeModel:
    """Return the generative model in what is trained."""
    model = module.model if isinstance(module, AlignedModel | JointModel) else module
    assert isinstance(model, GenerativeModel)
    return model
