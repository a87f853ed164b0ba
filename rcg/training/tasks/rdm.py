"""The representation diffusion model: it learns to generate representations, and says how well (its loss does not)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rcg.core.checkpoint import Part
from rcg.core.contracts import Report
from rcg.core.rng import Streams
from rcg.data.loading import Vectors
from rcg.data.views import Views
from rcg.diffusion.guidance import Probe
from rcg.diffusion.model import GenerativeModel
from rcg.metrics.frechet import frechet_distance
from rcg.metrics.manifold import nearest_distance, precision_recall

JUDGED = 5000
"""Most representations that an evaluation generates."""
COMPARED = 50_000
"""Most training representations among which it looks for the nearest."""
PROBED = 20_000
"""Most training representations that the linear probe is fitted to."""


class RDMTask:
    """Trains a generative model of representations z, kept with several views of each image.

    Args:
        model: the RDM.
        z: normalized representations `(N, V, D)` to learn.
        conditions: what the RDM is told of each image, labels `(N,)` or vectors `(N, C)`; None: nothing.
        held_out: representations `(M, 1, D)` of images that it never sees.
        held_out_labels: `(M,)`, for an RDM that is told labels.
        facts: what the checkpoint says about its neighbors.
    """

    def __init__(
        self,
        model: GenerativeModel,
        z: Views,
        conditions: Tensor | None,
        held_out: Views,
        held_out_labels: Tensor | None,
        facts: dict[str, Any],
    ) -> None:
        self.modules: dict[str, nn.Module] = {"rdm": model}
        self.facts, self.conditions = facts, conditions
        self.data = Vectors({"z": z} | ({} if conditions is None else {"cond": conditions}))
        order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[:COMPARED]
        self.count = min(JUDGED, len(held_out), len(z))
        self.chosen = order[: self.count]
        self.train = z.rows(order, order % z.views)  # as many of each view as the RDM sees
        positions = torch.arange(self.count)
        self.held_out = held_out.rows(positions, torch.zeros_like(positions))
        self.floor = frechet_distance(self.train[: self.count], self.held_out)
        self.probe: Probe | None = None
        if conditions is not None and held_out_labels is not None:
            self.probe = Probe.fit(self.train[:PROBED], conditions[order[:PROBED]])
            self.real_agreement = self._agreement(self.held_out, held_out_labels[: self.count])
        self.novelty = nearest_distance(self.held_out, self.train).median()

    def losses(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the denoising loss of a batch."""
        yield "rdm", self.modules["rdm"](batch["z"], batch.get("cond"))

    def after_step(self, step: int) -> None:
        """Nothing follows the weights."""

    def evaluate(self, models: Mapping[str, nn.Module], step: int) -> Report:
        """Compare generated z with held-out ones.

        rep_fd is their Frechet distance, and rep_fd_floor that of as many training z: what a perfect RDM would reach
        with so few. rep_precision and rep_recall say how many are plausible and how much is covered. rep_novelty is the
        median distance of generated z to the nearest training z, over that of held-out z: well below 1, it memorizes.
        With classes, rep_agreement is the share that a linear probe puts into the class asked for, beside that of
        held-out z put into their own.
        """
        model: Any = models["rdm"]
        device = next(model.parameters()).device
        found = []
        for start in range(0, self.count, 1000):
            indices = range(start, min(start + 1000, self.count))
            cond = None
            if self.conditions is not None:
                cond = self.conditions[self.chosen[list(indices)]].to(device)
            found.append(model.sample(cond, Streams(0, indices, "rdm", device)).float().cpu())
        generated = torch.cat(found)
        precision, recall = precision_recall(self.held_out, generated)
        metrics = {
            "rep_fd": frechet_distance(generated, self.held_out),
            "rep_fd_floor": self.floor,
            "rep_precision": precision,
            "rep_recall": recall,
            "rep_novelty": float(nearest_distance(generated, self.train).median() / self.novelty),
        }
        if self.probe is not None and self.conditions is not None:
            metrics["rep_agreement"] = self._agreement(generated, self.conditions[self.chosen])
            metrics["rep_agreement_real"] = self.real_agreement
        return Report(metrics, {}, score=metrics["rep_fd"])

    def _agreement(self, z: Tensor, labels: Tensor) -> float:
        assert self.probe is not None
        return float((self.probe.log_probability(z).argmax(1) == labels).float().mean())

    def export(self, models: Mapping[str, nn.Module]) -> Part:
        """Keep the averaged network."""
        return model_part("rdm", models["rdm"], self.facts)


def model_part(kind: str, model: Any, facts: dict[str, Any]) -> Part:
    """Describe a generative model so that `rcg.pipeline` builds it again from one file."""
    spaces = {"data": model.data.to_json(), "cond": None if model.cond is None else model.cond.to_json()}
    # What only training needs is not kept.
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("alignment.")}
    return Part(kind, model.config.model_dump(mode="json"), {**facts, **spaces}, tensors)
