"""The samples of each arm: its trained network, sampled alike, with the condition of the arm."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from rcg.comparison.arms import ARMS, Arm
from rcg.core.rng import fold_seed
from rcg.encoding.representation import Representation
from rcg.encoding.workspace import RealData, Workspace
from rcg.evaluation.samples import GeneratedImages, RepresentationSource, SamplingPlan
from rcg.pipeline import Pipeline, SamplingOptions

TRAINING = "training images"
"""What representations are of that a network was trained on."""


def arm_samples(key: str, work: Workspace, plan: SamplingPlan) -> GeneratedImages:
    """Return the samples of an arm whose network is trained.

    Raises:
        UserError: a part of its pipeline is missing, or does not fit.
    """
    pipeline = open_arm(ARMS[key], work, plan)
    options, cond = plan.options, pipeline.generator.cond
    # Each arm gets the options that mean something to it.
    if key != "twice":
        options = replace(options, sdedit_strength=None)
    if not pipeline.config.is_guidable:
        options = replace(options, guidance=None)
    if key != "generated":
        options = replace(options, rdm_steps=None)
    representations: RepresentationSource | None = None
    if key == "encoded":
        work.check_condition(cond)
        first = SamplingOptions(seed=options.seed, steps=options.steps)
        # A copy, for the workspace uses the transform on the CPU.
        representation = copy.deepcopy(work.representation).to(work.accelerator.device)
        representations = ReencodedRepresentations(open_arm(ARMS["none"], work, plan), representation, first)
        # Another seed: else both passes would begin at the same noise.
        options = replace(options, seed=fold_seed(options.seed, "second pass"))
    elif key == "oracle":
        assert cond is not None
        representations = RealRepresentations(work.real_data(cond), plan.count, options.seed)
    return GeneratedImages(pipeline, plan.count, options, plan.batch_size, representations)


def open_arm(arm: Arm, work: Workspace, plan: SamplingPlan) -> Pipeline:
    """Load the trained network of an arm with its neighbors; sampler and guidance are those of the experiment now."""
    config = work.experiment.require_generator()
    pipeline = Pipeline.from_pretrained(work.run.path, arm.variant(config).folder_name)
    now = {"sampler": config.sampler, "guidance": config.guidance}
    pipeline.generator.config = pipeline.config.model_copy(update=now)
    return pipeline.to(work.accelerator.device, plan.precision)


class RealRepresentations:
    """Representations of real images in random order, each once as long as there are enough of them.

    They are those of validation images where these are at least as many as samples, else those of training images.
    """

    def __init__(self, real: RealData, count: int, seed: int) -> None:
        """Choose among `real` images for `count` samples, in an order that follows `seed`."""
        if len(real.validation_z) >= count:
            split, images, self.z = "validation images", real.validation, real.validation_z
        else:
            split, images, self.z = TRAINING, real.train, real.train_z
        self.order = torch.randperm(len(self.z), generator=torch.Generator().manual_seed(fold_seed(seed, "oracle")))
        self.facts = {"of": split, "fingerprint": images.fingerprint, "number": len(self.z), "order": seed}

    def __getitem__(self, indices: list[int], /) -> Tensor:
        """Return the representations `(B, D)` for the samples with these indices."""
        return self.z[self.order[torch.tensor(indices) % len(self.order)]]


class ReencodedRepresentations:
    """Representations of images that a generator without a condition generates in one pass."""

    def __init__(self, pipeline: Pipeline, representation: Representation, options: SamplingOptions) -> None:
        """Encode the samples of `pipeline`."""
        self.pipeline, self.representation, self.options = pipeline, representation, options
        first = GeneratedImages(pipeline, 0, options)
        self.facts = {"of": "samples", "encoder": representation.space.id, "samples": first.facts}

    def __getitem__(self, indices: list[int], /) -> Tensor:
        """Return the representations `(B, D)` for the samples with these indices."""
        z: Tensor = self.representation(self.pipeline.generate(indices, self.options).images)
        return z
