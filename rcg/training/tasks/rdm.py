"""The task of the representation diffusion model (RDM): to generate representations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import EvalResult, Task
from rcg.data.loading import TensorDataset
from rcg.data.views import ShardedViews
from rcg.diffusion.batches import sample_z
from rcg.diffusion.model import GenerativeModel, model_part
from rcg.metrics.frechet import frechet_distance
from rcg.metrics.manifold import nearest_distance, precision_recall
from rcg.metrics.probe import LinearProbe

MAX_GENERATED = 5000
"""Most representations that an evaluation generates."""
MAX_COMPARED = 50_000
"""Most training representations among which it looks for the nearest."""
MAX_PROBED = 20_000
"""Most training representations that the linear probe is fitted to."""


class RDMTask(Task):
    """Trains a generative model of representations z, kept with several views of each image.

    Args:
        model: the RDM.
        z: normalized representations `(N, V, D)` to learn.
        validation_z: representations `(M, 1, D)` of images that it never sees.
        conditions: labels `(N, V)` or vectors `(N, V, C)` of the training images, V may be 1; None: no condition.
        validation_labels: `(M,)`, for an RDM conditioned on classes or clusters.
        facts: what the checkpoint says about its neighbors.
    """

    def __init__(
        self,
        model: GenerativeModel,
        z: ShardedViews,
        validation_z: ShardedViews,
        conditions: ShardedViews | None,
        validation_labels: Tensor | None,
        facts: Facts,
    ) -> None:
        self.modules: dict[str, nn.Module] = {"rdm": model}
        self.facts = facts.model_copy(update=model.spaces)
        self.data = TensorDataset({"z": z} if conditions is None else {"z": z, "cond": conditions})

        # The vectors that every evaluation compares with, and the metrics that never change.
        order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[:MAX_COMPARED]
        self.count = min(MAX_GENERATED, len(validation_z), len(z))
        self.cond = None if conditions is None else conditions.rows(order, order % conditions.views)
        self.train = z.rows(order, order % z.views)  # as many of each view as the RDM sees
        positions = torch.arange(self.count)
        self.validation = validation_z.rows(positions, torch.zeros_like(positions))
        self.reference_fd = frechet_distance(self.train[: self.count], self.validation)
        self.validation_distance = nearest_distance(self.validation, self.train).median()
        self.probe: LinearProbe | None = None
        if self.cond is not None and validation_labels is not None:
            self.probe = LinearProbe.fit(self.train[:MAX_PROBED], self.cond[:MAX_PROBED])
            self.real_agreement = self.probe.accuracy(self.validation, validation_labels[: self.count])

    def losses(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the denoising loss of a batch."""
        yield "rdm", self.modules["rdm"](batch["z"], batch.get("cond"))

    def evaluate(self, models: Mapping[str, nn.Module], step: int) -> EvalResult:
        """Compare generated z with z of the validation split.

        rep_fd is their Frechet distance, and rep_fd_reference that of as many training z: what a perfect RDM would
        reach with so few. rep_precision and rep_recall say how many are plausible and how much is covered; there are
        none of fewer than 4 images. rep_novelty
        is the median distance of generated z to the nearest training z, over that of validation z: well below 1, it
        memorizes. With classes or clusters, rep_agreement is the share that a linear probe puts into the one asked for,
        beside that of validation z put into their own.
        """
        model: Any = models["rdm"]
        cond = None if self.cond is None else self.cond[: self.count]
        generated = sample_z(model, cond, self.count, seed=0)
        shares = precision_recall(self.validation, generated)
        novelty = nearest_distance(generated, self.train).median() / self.validation_distance
        metrics = {
            "rep_fd": frechet_distance(generated, self.validation),
            "rep_fd_reference": self.reference_fd,
            "rep_novelty": float(novelty),
        }
        if shares is not None:
            metrics |= {"rep_precision": shares.precision, "rep_recall": shares.recall}
        if self.probe is not None and cond is not None:
            metrics["rep_agreement"] = self.probe.accuracy(generated, cond)
            metrics["rep_agreement_real"] = self.real_agreement
        return EvalResult(metrics, {}, score=metrics["rep_fd"])

    def export(self, models: Mapping[str, nn.Module]) -> Part:
        """Export the averaged network."""
        model: Any = models["rdm"]
        return model_part("rdm", model, self.facts)

    def compiled(self, name: str) -> nn.Module:
        """Return the network, which is what `train.compile` compiles."""
        model: Any = self.modules[name]
        network: nn.Module = model.network
        return network
