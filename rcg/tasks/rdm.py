"""The representation diffusion model: it learns to generate representations, and says how well (its loss does not)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rcg.checkpoint import Part
from rcg.contracts import Report
from rcg.loader import Vectors
from rcg.metrics.frechet import frechet_distance, halves
from rcg.model import GenerativeModel
from rcg.randomness import Streams
from rcg.vectors import Views

JUDGED = 5000
"""Most representations that an evaluation generates."""


class RDMTask:
    """Trains a generative model of representations z, kept with several views of each image.

    Args:
        model: the RDM.
        z: normalised representations `(N, V, D)`.
        labels: `(N,)`, when the images have them.
        facts: what the checkpoint says about its neighbours.
    """

    def __init__(self, model: GenerativeModel, z: Views, labels: Tensor | None, facts: dict[str, Any]) -> None:
        self.modules: dict[str, nn.Module] = {"rdm": model}
        self.facts, self.labels = facts, labels
        self.conditional = model.cond is not None
        self.data = Vectors({"z": z} | ({} if labels is None else {"label": labels}))
        # As many of each view as the RDM sees; an image is in one half only.
        self.real, self.reference = (z.rows(half, half % z.views) for half in halves(len(z), JUDGED))
        self.floor = frechet_distance(self.real, self.reference)

    def losses(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the denoising loss of a batch."""
        yield "rdm", self.modules["rdm"](batch["z"], batch["label"] if self.conditional else None)

    def after_step(self, step: int) -> None:
        """Nothing follows the weights."""

    def evaluate(self, models: Mapping[str, nn.Module], step: int) -> Report:
        """Return rep-FD, the Frechet distance of generated z to real ones, beside its floor.

        The floor is the distance of two disjoint halves of the real z, and rep-FD that of as many generated ones to
        the same half, so that the two compare whatever the number of images.
        """
        model: Any = models["rdm"]
        device = next(model.parameters()).device
        found = []
        for start in range(0, len(self.real), 1000):
            indices = range(start, min(start + 1000, len(self.real)))
            cond = None
            if self.conditional and self.labels is not None:
                cond = self.labels[torch.tensor(indices) % len(self.labels)].to(device)
            found.append(model.sample(cond, Streams(0, indices, "rdm", device)).float().cpu())
        return Report({"rep_fd": frechet_distance(torch.cat(found), self.reference), "rep_fd_floor": self.floor}, {})

    def export(self, models: Mapping[str, nn.Module]) -> Part:
        """Keep the averaged network."""
        return model_part("rdm", models["rdm"], self.facts)


def model_part(kind: str, model: Any, facts: dict[str, Any]) -> Part:
    """Describe a generative model so that `rcg.pipeline` builds it again from one file."""
    spaces = {"data": model.data.to_json(), "cond": None if model.cond is None else model.cond.to_json()}
    return Part(kind, model.config.model_dump(mode="json"), {**facts, **spaces}, model.state_dict())
