"""The task of the pixel generator: to generate an image from its representation, its label, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from rcg.diffusion.alignment import AlignedModel, AlignmentHead
from rcg.diffusion.model import GenerativeModel, model_part
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
        model: the generator.
        autoencoder: latents <-> images.
        train: images and conditions to learn from.
        validation: images and conditions for the loss and the sample grid of evaluations.
        facts: what the checkpoint says about its neighbors.
        head: what aligns the model's hidden tokens, for representation alignment; None: without.
        encoder: the frozen encoder whose patch tokens they are aligned with.
    """

    def __init__(
        self,
        model: GenerativeModel,
        autoencoder: Autoencoder,
        train: ConditionedImages,
        validation: ConditionedImages,
        facts: Facts,
        head: AlignmentHead | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        self.modules: dict[str, nn.Module] = {"generator": model if head is None else AlignedModel(model, head)}
        self.autoencoder, self.data, self.validation = autoencoder, train, validation
        self.facts = facts.model_copy(update={"data": model.data, "cond": model.cond})
        self.encoder = encoder
        self.key = CONDITION_KEYS[model.config.condition]

    def losses(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the denoising loss of a batch, and the alignment loss if there is one."""
        inputs: list[Tensor | None] = []
        with torch.no_grad():
            if "latent" in batch:
                inputs.append(self.autoencoder.draw(batch["latent"]))
            else:
                inputs.append(self.autoencoder.encode(batch["image"]))
            inputs.append(self._cond(batch))
            if self.encoder is not None:
                inputs.append(self.encoder.patch_features(batch["image"]))
        yield "generator", self.modules["generator"](*inputs)

    def evaluate(self, models: Mapping[str, nn.Module], step: int) -> EvalResult:
        """Return the loss on validation images, and validation images beside samples from their conditions."""
        model = _without_head(models["generator"])
        device = next(model.parameters()).device

        # The loss, with the same noise at every evaluation; the next training step seeds again.
        count = min(MAX_EVALUATED, len(self.validation))
        items = [self.validation[(i, 0)] for i in range(count)]
        batch = {name: torch.stack([item[name] for item in items]).to(device) for name in items[0]}
        torch.manual_seed(0)
        losses = model(self.autoencoder.encode(batch["image"]), self._cond(batch))
        score = float(torch.stack(list(losses.values())).sum())
        metrics = {f"validation_{name}": float(value) for name, value in losses.items()}

        # Samples from the conditions of the first images.
        first = {name: value[:SHOWN] for name, value in batch.items()}
        noise = SampleNoise(0, range(len(first["image"])), "generator", device)
        latent = model.sample(self._cond(first), noise)
        images = self.autoencoder.decode(latent.float() if latent.is_floating_point() else latent).float()
        title, captions = f"step {step}: samples without a condition", [""] * len(images)
        if self.key is not None:
            title = f"step {step}: validation images, each beside a sample from its condition"
            captions = ["real", "sample"] * len(images)
            images = torch.stack([first["image"], images], dim=1).flatten(0, 1)
        return EvalResult(metrics, {"samples": gallery(images.cpu(), captions, title)}, score)

    def export(self, models: Mapping[str, nn.Module]) -> Part:
        """Export the averaged model, without what only training needs."""
        return model_part("generator", _without_head(models["generator"]), self.facts)

    def compiled(self, name: str) -> nn.Module:
        """Return the network, which is what `train.compile` compiles."""
        return _without_head(self.modules[name]).network

    def _cond(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        return None if self.key is None else batch[self.key]


def _without_head(module: nn.Module) -> GenerativeModel:
    model = module.model if isinstance(module, AlignedModel) else module
    assert isinstance(model, GenerativeModel)
    return model
