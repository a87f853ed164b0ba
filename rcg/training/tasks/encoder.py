"""MoCo v3 pre-training of an encoder on unlabeled images (Chen, Xie, He, ICCV 2021, Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import ContrastiveTrain
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Encoder, EvalResult, Task
from rcg.data.augment import ContrastivePairs
from rcg.data.images import Images
from rcg.data.loading import batches
from rcg.distributed.launch import gather, rank, unwrapped
from rcg.encoding.encoder import encoder_part
from rcg.metrics.representation import alignment, effective_rank, knn_accuracy, uniformity
from rcg.visual.grids import gallery

MAX_ENCODED = 20_000
"""Most images of a split that an evaluation encodes."""


class MoCo(nn.Module):
    """An encoder with projector, its momentum copy, and a predictor; calling it gives the loss of two views."""

    def __init__(self, encoder: Encoder, config: ContrastiveTrain, width: int) -> None:
        super().__init__()
        self.base = encoder
        self.momentum = deepcopy(encoder).requires_grad_(False)
        self.predictor = nn.Sequential(
            nn.Linear(width, config.predictor, bias=False),
            nn.BatchNorm1d(config.predictor),
            nn.ReLU(),
            nn.Linear(config.predictor, width, bias=False),
            *([nn.BatchNorm1d(width, affine=False)] if config.predictor_norm else []),
        )
        self.temperature = config.temperature

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        """Return the symmetric InfoNCE loss of `views` `(B, 2, 3, S, S)` in [0, 1]; keys come from all processes."""
        queries = [self.predictor(self.base.project(view)) for view in views.unbind(1)]
        with torch.no_grad():
            keys = [self.momentum.project(view) for view in views.unbind(1)]
        first, second = (info_nce(q, k, self.temperature) for q, k in zip(queries, reversed(keys), strict=True))
        return {"infonce": first + second}

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the momentum encoder toward the base encoder; its batch statistics are its own."""
        followers: list[Tensor] = [p for p in self.momentum.parameters() if p.is_floating_point()]
        torch._foreach_lerp_(followers, [p.data for p in self.base.parameters()], 1 - momentum)


def info_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Return 2 tau times the cross-entropy of finding each query's own key among the keys of all processes.

    Args:
        query: `(B, P)`, with gradients.
        key: `(B, P)`, without.
        temperature: tau.
    """
    query, key = F.normalize(query.float()), gather(F.normalize(key.float()))
    own = torch.arange(len(query), device=query.device) + rank() * len(query)
    return 2 * temperature * F.cross_entropy(query @ key.T / temperature, own)


class EncoderTask(Task):
    """Trains an encoder by contrast; evaluates it by neighbors (with labels), alignment, uniformity and rank.

    Args:
        encoder: what is trained.
        train: images to learn from.
        validation: images for the metrics.
        config: of the training.
        facts: what the checkpoint says about its neighbors.
    """

    def __init__(
        self, encoder: Encoder, train: Images, validation: Images, config: ContrastiveTrain, facts: Facts
    ) -> None:
        self.config, self.train, self.validation, self.facts = config, train, validation, facts
        self.data = ContrastivePairs(train, config.augment)
        with torch.no_grad():
            width = encoder.eval().project(train[0]["image"][None]).shape[1]
        moco = MoCo(encoder.train(), config, width)
        # Convolutions on the CPU, and in half precision everywhere, are faster with channels last.
        self.modules: dict[str, nn.Module] = {"encoder": moco.to(memory_format=torch.channels_last)}

    def losses(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the contrastive loss of a batch of view pairs."""
        yield "encoder", self.modules["encoder"](batch["views"])

    def after_step(self, step: int) -> None:
        """Let the momentum encoder follow; its momentum rises from the configured one to 1 by half a cosine."""
        share = step / max(1, self.config.steps)
        momentum = 1 - (1 - self.config.momentum) * 0.5 * (1 + math.cos(math.pi * share))
        unwrapped(self.modules["encoder"]).follow(momentum)

    def evaluate(self, models: Mapping[str, nn.Module], step: int) -> EvalResult:
        """Encode part of both splits and measure the representation.

        The score, lower is better, is the error of classification by neighbors; without labels it is alignment plus
        uniformity, which predicts that error (Wang and Isola, ICML 2020).
        """
        encoder: Any = models["encoder"].base
        train, train_labels = self._encode(encoder, self.train)
        validation, validation_labels = self._encode(encoder, self.validation)
        pairs = [self.data[(i, draw)]["views"] for draw, i in enumerate(range(min(256, len(self.train))))]
        views = torch.stack(pairs)
        device = next(encoder.parameters()).device
        metrics = {
            "alignment": alignment(*(encoder(view.to(device)).float().cpu() for view in views.unbind(1))),
            "effective_rank": effective_rank(validation),
        }
        spread = uniformity(validation[:2000])
        if spread is not None:
            metrics["uniformity"] = spread
        if train_labels is not None and validation_labels is not None:
            metrics["knn_accuracy"] = knn_accuracy(train, train_labels, validation, validation_labels)
            score = 1 - metrics["knn_accuracy"]
        else:
            score = metrics["alignment"] + (spread or 0.0)
        shown = views[:32].flatten(0, 1)
        title = "training images, two random views of each side by side"
        return EvalResult(metrics, {"views": gallery(shown, [""] * len(shown), title, columns=16)}, score)

    def export(self, models: Mapping[str, nn.Module]) -> Part:
        """Export the base encoder, as the published method does."""
        encoder: Any = models["encoder"].base
        return encoder_part(encoder, self.facts)

    def _encode(self, encoder: Any, images: Images) -> tuple[Tensor, Tensor | None]:
        device = next(encoder.parameters()).device
        count = min(MAX_ENCODED, len(images))
        rep = [encoder(batch["image"].to(device)).float().cpu() for batch in batches(images, range(count), 256)]
        return torch.cat(rep), None if images.labels is None else images.labels[:count]
