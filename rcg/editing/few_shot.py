"""Conditional generation from a few labeled examples: generated z are kept by how well they fit (rejection sampling).

Diffusion Autoencoders (Preechakul et al., CVPR 2022, Section 5.5) with a probe on z: p(z | y) is proportional to
p(y | z) p(z), so that a generated z accepted with probability p(y | z) is a sample of p(z | y). The probe of a few
examples is unsure of most z, and a little probability of each of the many that lack the property adds up: those that
more likely lack it are never accepted. What is left are typical samples of p(z | y).

Generated z cost nothing. They stand for images without a label, and they are what z is whitened by: the few examples
need not tell which directions vary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rcg.core import checkpoint
from rcg.core.console import say
from rcg.core.errors import UserError
from rcg.core.rng import SampleNoise, fold_seed
from rcg.editing.encoded import represent
from rcg.editing.images import read_images
from rcg.metrics.probe import LinearProbe
from rcg.pipeline import Pipeline, SamplingOptions

UNLABELED = 1000
"""Generated representations that stand for images without a label."""
SHRINKAGE = 0.01
"""Share of their mean that is added to variances before z are divided by them, so that none is near 0."""

Probability = Callable[[Tensor], Tensor]
"""The probability `(B,)` that each of z `(B, D)` has a property."""


class Accepted(NamedTuple):
    """Representations that were accepted.

    Attributes:
        z: `(B, D)`.
        attempts: how many were drawn for each, `(B,)`.
    """

    z: Tensor
    attempts: Tensor

    @property
    def rate(self) -> float:
        """The share of drawn representations that were accepted."""
        return len(self.attempts) / float(self.attempts.sum())


def like_examples(positive: Tensor, negative: Tensor, unlabeled: Tensor) -> Probability:
    """Fit the probability that a z is like some examples.

    The probe tells examples from all others, which hold the property as well. The probability of being an example is
    that of the property times a constant, the mean over examples that the probe has not seen (Elkan and Noto, KDD 2008,
    Section 2).

    Args:
        positive: z of the examples, `(P, D)`, at least 2.
        negative: z of images without the property, `(N, D)`; N may be 0.
        unlabeled: z of any images, `(U, D)`.

    Returns:
        The probability; 0 where it is below one half.
    """
    whiten = _whitening(unlabeled.cpu())
    positive = whiten(positive.cpu())
    others = torch.cat([whiten(negative.cpu()), whiten(unlabeled.cpu())])
    probe, share = _probe(positive, others), _labeled_share(positive, others)

    def probability(z: Tensor) -> Tensor:
        has_property = (probe.log_probability(whiten(z))[:, 1].exp() / share).clamp(max=1)
        return torch.where(has_property > 0.5, has_property, 0.0)

    return probability


def _whitening(z: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the linear map that gives `z` `(N, D)` the covariance 1; their own has `SHRINKAGE` of its mean added."""
    mean, covariance = z.double().mean(0), z.double().T.cov()
    values, vectors = torch.linalg.eigh(covariance)
    scales = (values.clamp(min=0) + SHRINKAGE * values.mean()).rsqrt()
    matrix, center = (vectors * scales).float(), mean.float()
    return lambda z: (z - center.to(z)) @ matrix.to(z)


def _probe(positive: Tensor, others: Tensor) -> LinearProbe:
    """Fit the probe that says 1 for the examples `(P, D)` and 0 for others `(N, D)`."""
    labels = torch.cat([torch.ones(len(positive)), torch.zeros(len(others))]).long()
    return LinearProbe.fit(torch.cat([positive, others]), labels, inverse_penalty=0.05)


def _labeled_share(positive: Tensor, others: Tensor, folds: int = 5) -> float:
    """Return the mean probability of being labeled of examples that the probe has not seen."""
    shares = []
    for fold in range(min(folds, len(positive))):
        is_unseen = torch.arange(len(positive)) % folds == fold
        probe = _probe(positive[~is_unseen], others)
        shares.append(probe.log_probability(positive[is_unseen])[:, 1].exp())
    return float(torch.cat(shares).mean())


def rejection_sample(
    generate: Callable[[list[int], int], Tensor],
    probability: Probability,
    indices: Sequence[int],
    seed: int,
    most: int = 1000,
) -> Accepted:
    """Draw a z for each index until one is accepted; sample i depends on (seed, i) alone.

    Args:
        generate: returns z `(B, D)` for some indices and the number of the attempt.
        probability: of being accepted.
        indices: which samples.
        seed: of the decisions.
        most: attempts for one sample.

    Raises:
        UserError: some sample was never accepted.
    """
    waiting, attempts, chosen = list(indices), {}, {}
    for attempt in range(most):
        z = generate(waiting, attempt)
        chance = SampleNoise(seed, waiting, f"acceptance {attempt}").uniform(()).to(z.device)
        is_accepted = (chance < probability(z)).tolist()
        for index, row, accepted in zip(waiting, z, is_accepted, strict=True):
            if accepted:
                chosen[index], attempts[index] = row, attempt + 1
        waiting = [index for index, accepted in zip(waiting, is_accepted, strict=True) if not accepted]
        if not waiting:
            return Accepted(torch.stack([chosen[i] for i in indices]), torch.tensor([attempts[i] for i in indices]))
    raise UserError(
        f"{len(waiting)} of {len(indices)} samples were not accepted in {most} attempts: the RDM hardly generates "
        f"anything like these examples"
    )


class LikeExamples:
    """Generated representations that are like some examples, for each sample one; rows depend on (seed, index) alone.

    Attributes:
        facts: what decides them, JSON-serializable.
        accepted: how many were accepted so far.
        attempts: how many were generated for that.
    """

    def __init__(self, pipeline: Pipeline, positive: Tensor, negative: Tensor | None, options: SamplingOptions) -> None:
        """Fit the probability that a representation is like the examples.

        Args:
            pipeline: whose RDM generates representations.
            positive: z of the examples, `(P, d)`.
            negative: z of images without the property, `(N, d)`; None: there are no such examples.
            options: of sampling.

        Raises:
            UserError: there are fewer than two examples of a kind, or the pipeline has no RDM.
        """
        if pipeline.rdm is None:
            raise UserError(f"{pipeline.config.folder_name} came without an RDM, whose representations are chosen from")
        for name, z in (("with", positive), ("without", negative)):
            if z is not None and len(z) < 2:
                raise UserError(f"there is {len(z)} example {name} the property: give at least two, better 20")
        self.pipeline, self.options = pipeline, options
        unlabeled = pipeline.generate_z(range(UNLABELED), self._attempt(-1)).cpu()
        negative = positive[:0] if negative is None else negative
        self.probability = like_examples(positive, negative, unlabeled)
        self.accepted = self.attempts = 0
        self.facts: dict[str, Any] = {
            "of": "generated, like examples",
            "examples": checkpoint.digest({"positive": positive, "negative": negative, "unlabeled": unlabeled}),
            "rdm": checkpoint.digest(pipeline.parts["rdm"].tensors),
            "rdm_sampler": pipeline.rdm.config.sampler.with_steps(options.rdm_steps).model_dump(mode="json"),
        }

    def __getitem__(self, indices: list[int], /) -> Tensor:
        """Return the representations `(B, d)` for the samples with these indices."""
        found = rejection_sample(self._generate, self.probability, indices, self.options.seed)
        self.accepted += len(indices)
        self.attempts += int(found.attempts.sum())
        return found.z

    def say_rate(self) -> None:
        """Say what share of generated representations was accepted."""
        if self.attempts:
            share = self.accepted / self.attempts
            say(f"accepted {self.accepted} of {self.attempts} generated representations, {share:.1%}")

    def _generate(self, indices: list[int], attempt: int) -> Tensor:
        return self.pipeline.generate_z(indices, self._attempt(attempt))

    def _attempt(self, number: int) -> SamplingOptions:
        """Return the options of one attempt: its noise is another one."""
        return replace(self.options, seed=fold_seed(self.options.seed, "attempt", number + 1))


def open_examples(pipeline: Pipeline, like: Path, unlike: Path | None, options: SamplingOptions) -> LikeExamples:
    """Return generated representations like the pictures of a folder, and unlike those of another, if there is one."""
    positive, negative = (
        None if folder is None else represent(pipeline, read_images([folder], pipeline.image_size))
        for folder in (like, unlike)
    )
    assert positive is not None
    return LikeExamples(pipeline, positive, negative, options)
