"""How good a generator is while it is trained, how good it will be at the end, and whether it copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rcg.config import GeneratorConfig, GeneratorTrain
from rcg.data.images import Images
from rcg.data.views import ShardedViews
from rcg.encoding.representation import Representation
from rcg.encoding.run_folder import StageFolder
from rcg.metrics.forecast import PowerLaw
from rcg.metrics.frechet import FittedGaussian, unbiased_distance
from rcg.metrics.memorization import memorization, pixel_features
from rcg.training.logger import AT_END

COST = 1 / 20
"""Largest share of the network evaluations of training that judging takes."""
STEP = 3
"""Evaluations that a training step costs for one image: one forward, and a backward of twice the work."""
FRAME = 2
"""Evaluations as which decoding a sample and encoding its image count."""
LEAST_JUDGED = 32
"""Fewest samples that a distance is measured of."""
MAX_COMPARED = 10_000
"""Most training images that samples are compared with, drawn at random."""


def judged_samples(config: GeneratorConfig, validation: int) -> int:
    """Return how many samples an evaluation judges.

    Evaluations of the network are counted, not seconds, so that the number is the same on every machine.

    Args:
        config: of the generator.
        validation: number of validation images, whose conditions the samples get.
    """
    train = config.train
    is_guided = config.guidance.scale != 1 and config.guidance.against is None and config.condition != "none"
    sample = config.sampler.steps * (2 if is_guided else 1) + FRAME
    images = min(train.evaluate_every or train.steps, train.steps) * train.batch_size
    count = min(train.judged_samples, validation, int(COST * STEP * images / sample))
    return count if count >= LEAST_JUDGED else 0


@dataclass(frozen=True)
class JudgedSpace:
    """A space in which samples are compared with training images.

    Attributes:
        suffix: what is appended to the names of its metrics.
        encode: maps images `(B, 3, S, S)` in [0, 1] to vectors `(B, D)` on the CPU.
        train: vectors of training images `(N, V, D)`, of which the first view counts.
        validation: vectors of validation images `(M, 1, D)`.
        is_own: whether it is that of the run's own encoder, in which copies are searched.
    """

    suffix: str
    encode: Callable[[Tensor], Tensor]
    train: ShardedViews
    validation: ShardedViews
    is_own: bool = False


def judged_space(
    suffix: str, representation: Representation, train: ShardedViews, validation: ShardedViews, is_own: bool
) -> JudgedSpace:
    """Return the space of a representation, whose encoder is on the device of the samples."""

    def encode(image: Tensor) -> Tensor:
        return representation.transform(representation.encode(image).cpu())  # it is on the CPU, where rows are read

    return JudgedSpace(suffix, encode, train, validation, is_own)


class Clock:
    """Judges samples of each evaluation.

    Args:
        count: number of samples that it wants, more than 0.
        spaces: in which distances are measured; there may be none.
        images: training images.
        validation: validation images, to which those samples belong.
        config: of the training.
        folder: of the training, whose log holds the distances so far.
    """

    def __init__(
        self,
        count: int,
        spaces: list[JudgedSpace],
        images: Images,
        validation: Images,
        config: GeneratorTrain,
        folder: StageFolder,
    ) -> None:
        self.count, self.spaces, self.images, self.validation = count, spaces, images, validation
        self.config, self.folder = config, folder
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        self.positions = order[:MAX_COMPARED]

    def measure(self, samples: Tensor, step: int) -> dict[str, float]:
        """Return the metrics of samples `(count, 3, S, S)` in [0, 1] at a step.

        fd is their Frechet distance to training images in the encoder's space, as of infinitely many samples: a
        perfect generator would reach 0. fd_at_end is what a power law through the distances so far gives for the last
        step. fd_judge and fd_judge_at_end are the same in the space of the judge. copies is the share of samples closer
        to a training image than the closest 1 % of validation images are, in the encoder's space; copies_pixels, in
        pixels.
        """
        samples = (samples.clamp(0, 1) * 255).round()
        with torch.autocast(samples.device.type, enabled=False):
            metrics = dict(self._metrics(samples))
        for space in self.spaces:
            name = f"fd{space.suffix}"
            end = self._expected(name, metrics[name], step)
            if end is not None:
                metrics[name + AT_END] = end
        return metrics

    def _metrics(self, samples: Tensor) -> Iterator[tuple[str, float]]:
        for space, real in zip(self.spaces, self._real, strict=True):
            features = torch.cat([space.encode(part / 255) for part in samples.split(64)])
            yield f"fd{space.suffix}", unbiased_distance(features, real.validation, real.gaussian)
            if space.is_own:
                yield "copies", float(memorization(features, real.train, real.validation).copies.mean())
        pixels = pixel_features(samples.cpu())
        yield "copies_pixels", float(memorization(pixels, *self._pixels).copies.mean())

    def _expected(self, name: str, value: float, step: int) -> float | None:
        """Return what a metric will probably be at the last step; None there, and where too little is known."""
        if step >= self.config.steps:
            return None
        before = [line for line in self.folder.lines() if name in line and line["step"] < step]
        law = PowerLaw.fit([*(line["step"] for line in before), step], [*(line[name] for line in before), value])
        return None if law is None else law.at(self.config.steps)

    @cached_property
    def _real(self) -> list[_Real]:
        """What samples are compared with in each space; it never changes."""
        return [_Real.of(space, self.positions) for space in self.spaces]

    @cached_property
    def _pixels(self) -> tuple[Tensor, Tensor]:
        """Pixels of training and of validation images."""
        return _read(self.images, self.positions), _read(self.validation, range(len(self.validation)))


@dataclass(frozen=True)
class _Real:
    """Real images in a space."""

    train: Tensor
    validation: Tensor
    gaussian: FittedGaussian

    @classmethod
    def of(cls, space: JudgedSpace, positions: Tensor) -> _Real:
        train = space.train.rows(positions, torch.zeros_like(positions))
        order = torch.arange(min(len(space.validation), MAX_COMPARED))
        validation = space.validation.rows(order, torch.zeros_like(order))
        return cls(train, validation, FittedGaussian.fit(train))


def _read(images: Images, positions: Tensor | range) -> Tensor:
    """Return the pixels `(N, D)` of images, as bytes."""
    parts = [pixel_features((images[int(i)]["image"][None] * 255).round()) for i in positions]
    return torch.cat(parts)
