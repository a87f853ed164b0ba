"""A pixel generator: it learns to paint an image from its representation, its label, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rcg.core.checkpoint import Part
from rcg.core.contracts import Encoder, Report
from rcg.core.rng import Streams
from rcg.data.images import Images
from rcg.data.loading import Key
from rcg.data.views import Views
from rcg.diffusion.model import GenerativeModel
from rcg.training.tasks.rdm import model_part
from rcg.visual.grids import grid

SHOWN = 32


class Conditioned(Dataset[dict[str, Tensor]]):
    """Images, or their latents, with what a generator is told of them; one of the kept views is taken at random.

    Args:
        images: N images.
        views: how many views were encoded.
        z: representations `(N, V, D)` of exactly these views, or None.
        latents: posteriors `(N, V, *S)` of exactly these views, which are then served in place of the images, or None.
        labels: `(N,)` in place of the images' own, or None.
    """

    def __init__(
        self,
        images: Images,
        views: int,
        z: Views | None,
        latents: Views | None = None,
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
        item = {"label": self.images.label(position) if self.labels is None else self.labels[position]}
        if self.latents is None:
            item["image"] = self.images[(position, view)]["image"]
        else:
            item["latent"] = self.latents.rows([position], [view])[0]
        if self.z is not None:
            item["z"] = self.z.rows([position], [view])[0]
        return item


class GeneratorTask:
    """Trains a generative model in the latent space of a frozen autoencoder.

    Args:
        model: the generator.
        autoencoder: the frozen first stage.
        train: images and conditions to learn from.
        held_out: images and conditions for the loss and the pictures of evaluations.
        facts: what the checkpoint says about its neighbors.
        encoder: the frozen encoder, for a generator that is aligned with its patch tokens.
    """

    def __init__(
        self,
        model: GenerativeModel,
        autoencoder: Any,
        train: Conditioned,
        held_out: Conditioned,
        facts: dict[str, Any],
        encoder: Encoder | None = None,
    ) -> None:
        self.modules: dict[str, nn.Module] = {"generator": model}
        self.autoencoder, self.data, self.held_out, self.facts = autoencoder, train, held_out, facts
        self.encoder = encoder
        self.key = {"none": None, "class": "label", "cluster": "label", "representation": "z"}[model.config.condition]

    def losses(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the denoising loss of a batch."""
        with torch.no_grad():
            if "latent" in batch:
                latent = self.autoencoder.draw(batch["latent"])
            else:
                latent = self.autoencoder.encode(batch["image"])
            patches = None if self.encoder is None else self.encoder.tokens(batch["image"])
        yield "generator", self.modules["generator"](latent, self._cond(batch), patches)

    def after_step(self, step: int) -> None:
        """Nothing follows the weights."""

    def evaluate(self, models: Mapping[str, nn.Module], step: int) -> Report:
        """Return the loss on held-out images, and held-out images beside what is painted from their conditions."""
        model: Any = models["generator"]
        device = next(model.parameters()).device
        count = min(256, len(self.held_out))
        items = [self.held_out[(i, 0)] for i in range(count)]
        batch = {name: torch.stack([item[name] for item in items]).to(device) for name in items[0]}
        torch.manual_seed(0)  # the same noise at every evaluation; the next training step seeds again
        losses = model(self.autoencoder.encode(batch["image"]), self._cond(batch))
        score = float(torch.stack(list(losses.values())).sum())
        shown = {name: value[:SHOWN] for name, value in batch.items()}
        streams = Streams(0, range(len(shown["image"])), "generator", device)
        latent = model.sample(self._cond(shown), streams)
        painted = self.autoencoder.decode(latent.float() if latent.is_floating_point() else latent).float()
        if self.key is None:
            return Report(_named(losses), {"samples": grid(painted.cpu(), columns=8)}, score)
        pairs = torch.stack([shown["image"], painted], dim=1).flatten(0, 1)
        return Report(_named(losses), {"samples": grid(pairs.cpu(), columns=8)}, score)

    def export(self, models: Mapping[str, nn.Module]) -> Part:
        """Keep the averaged network."""
        return model_part("generator", models["generator"], self.facts)

    def _cond(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        return None if self.key is None else batch[self.key]


def _named(losses: Mapping[str, Tensor]) -> dict[str, float]:
    return {f"validation_{name}": float(value) for name, value in losses.items()}
