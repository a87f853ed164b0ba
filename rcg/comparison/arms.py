"""The arms of a comparison: which network each samples from, and what that is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rcg.config import Experiment
from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.core.rng import fold
from rcg.encoding.representation import Representation
from rcg.encoding.workspace import Real, fitted_representation, real_representations
from rcg.evaluation.samples import Generated, Told
from rcg.pipeline import Pipeline
from rcg.training import stages


class Arm(NamedTuple):
    """One way to train and to sample a generator."""

    name: str
    told: str
    """What it is told when it samples, for people."""
    condition: Literal["none", "class", "cluster", "representation"]
    """What its network was told in training."""
    self_condition: bool = False
    """Whether its network was shown its last estimate."""


ARMS = {
    "none": Arm("one pass", "nothing", "none"),
    "twice": Arm("two passes", "its own sample, taken back to t0", "none"),
    "self": Arm("self-conditioned", "its last estimate of the image", "none", self_condition=True),
    "encoded": Arm("two passes, encoded", "the representation of a sample of one pass", "representation"),
    "cluster": Arm("cluster label", "the cluster of a representation", "cluster"),
    "class": Arm("class label", "a class that people named", "class"),
    "generated": Arm("generated representation", "a representation drawn by the RDM", "representation"),
    "oracle": Arm("oracle representation", "the representation of a real image", "representation"),
}
"""All of them, by the names that a person types, in the order of the table."""


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn, alike for all arms.

    Attributes:
        count: samples of each arm.
        seed: which universe of samples.
        t0: share of the way back to noise from which a second pass starts.
        labels: how classes and clusters are dealt out, `balanced` or `random`.
        guidance: scale for all arms with a condition; none: as configured.
        steps: network evaluations of one pass; none: as configured.
        rdm_steps: network evaluations of the RDM; none: as configured.
        batch_size: images drawn at a time.
        precision: mixed precision of the networks; `no`: without.
    """

    count: int
    seed: int
    t0: float
    labels: str
    guidance: float | None
    steps: int | None
    rdm_steps: int | None
    batch_size: int
    precision: str = "no"

    @property
    def how(self) -> dict[str, Any]:
        """What `Pipeline.sample` is asked for."""
        asked = {"guidance": self.guidance, "steps": self.steps, "rdm_steps": self.rdm_steps}
        return {**asked, "labels": self.labels}


def variant(experiment: Experiment, arm: Arm) -> Experiment:
    """Return the experiment whose generator is the network of an arm; everything else is the same."""
    told = {"condition": arm.condition, "self_condition": arm.self_condition}
    assert experiment.generator is not None
    return experiment.model_copy(update={"generator": experiment.generator.model_copy(update=told)})


def opened(experiment: Experiment, arm: Arm, drawing: Drawing, device: torch.device) -> Pipeline:
    """Load the trained network of an arm with its neighbors, to be sampled as the experiment says now."""
    folder = stages.generator_folder(variant(experiment, arm))
    pipeline = Pipeline.from_run(experiment.run, folder.name).to(device, drawing.precision)
    trained, asked = pipeline.generator.config, experiment.generator
    assert asked is not None
    pipeline.generator.config = trained.model_copy(update={"sampler": asked.sampler, "guidance": asked.guidance})
    return pipeline


def samples_of(key: str, experiment: Experiment, drawing: Drawing, device: torch.device) -> Generated:
    """Return the samples of an arm whose network is trained.

    Raises:
        UserError: a part of its pipeline is missing, or does not fit.
    """
    pipeline, seed, how = opened(experiment, ARMS[key], drawing, device), drawing.seed, drawing.how
    told: Told | None = None
    if key == "twice":
        how["t0"] = drawing.t0
    elif key == "encoded":
        representation = fitted_representation(experiment, pipeline.generator.cond).to(device)
        told = Encoded(opened(experiment, ARMS["none"], drawing, device), representation, seed, drawing.steps)
        seed = fold(seed, "second pass")  # else both passes would begin at the same noise
    elif key == "oracle":
        assert pipeline.generator.cond is not None
        told = OfReal(real_representations(experiment, pipeline.generator.cond), drawing.count, seed)
    return Generated(pipeline, drawing.count, seed, how, drawing.batch_size, told)


class OfReal:
    """Representations of real images in random order, each once as far as there are enough of them.

    They are held-out ones where these are at least `count`, else those of training images.
    """

    def __init__(self, real: Real, count: int, seed: int) -> None:
        """Choose among `real` images for `count` samples, in an order that follows `seed`."""
        held_out = len(real.held_out_z) >= count
        images, self.z = (real.held_out, real.held_out_z) if held_out else (real.train, real.z)
        self.order = torch.randperm(len(self.z), generator=torch.Generator().manual_seed(fold(seed, "oracle")))
        self.facts = {
            "representations of": "held-out images" if held_out else "training images",
            "fingerprint": images.fingerprint,
            "number": len(self.z),
            "order": seed,
        }

    def __getitem__(self, indices: list[int], /) -> Tensor:
        """Return the representations `(B, D)` for the samples with these indices."""
        return self.z[self.order[torch.tensor(indices) % len(self.order)]]


class Encoded:
    """Representations of what a generator without a condition painted in one pass."""

    def __init__(self, pipeline: Pipeline, representation: Representation, seed: int, steps: int | None) -> None:
        """Encode the samples of `pipeline` with a seed and a number of steps."""
        self.pipeline, self.representation, self.seed, self.steps = pipeline, representation, seed, steps
        first = Generated(pipeline, 0, seed, {"steps": steps})
        self.facts = {"representations of": "samples", "encoder": representation.space.id, "samples": first.facts}

    def __getitem__(self, indices: list[int], /) -> Tensor:
        """Return the representations `(B, D)` for the samples with these indices."""
        z: Tensor = self.representation(self.pipeline.sample(indices, self.seed, steps=self.steps).images)
        return z


def unavailable(key: str, experiment: Experiment, classes: Sequence[str]) -> str | None:
    """Return why an arm cannot be, None where it can."""
    if key == "class" and not classes:
        return "the data set has no labels"
    if key == "generated" and experiment.rdm.condition == "vector":
        return "the RDM is told vectors that are computed elsewhere"
    return None


def check(experiment: Experiment, keys: Sequence[str]) -> None:
    """Refuse an experiment whose arms would not be comparable.

    Raises:
        UserError: there is no generator, or a setting belongs to one of the arms or ends trainings at different steps.
    """
    config = experiment.generator
    if config is None:
        raise UserError("the experiment ends with its RDM: add a section generator: {name: dit, ...} to compare")
    if config.self_condition:
        raise UserError("generator.self_condition is one of the arms that are compared: leave it out, or set it false")
    if config.train.patience is not None:
        raise UserError(
            "generator.train.patience ends trainings at different steps, but arms are compared at equal training "
            "compute: leave it out"
        )
    told = [key for key in keys if ARMS[key].condition == "representation"]
    if told and not (experiment.run / "rdm" / checkpoint.FILE).is_file():
        raise UserError(
            f"{experiment.run / 'rdm'} holds no trained RDM, beside which the arms {', '.join(told)} are sampled: run "
            f"tools/train_rdm.py with the same configuration first, or choose others with --arms"
        )
