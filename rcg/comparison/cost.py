"""The cost of samples: network evaluations, counted as they happen, and seconds; with the images generated for it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rcg.comparison.samples import ReencodedRepresentations
from rcg.core import checkpoint
from rcg.diffusion.model import GenerativeModel
from rcg.evaluation.samples import GeneratedImages


class SampleCost(NamedTuple):
    """The cost of one sample, and the first samples.

    Attributes:
        images: bytes `(n, 3, H, W)`.
        seconds: of one sample, generated in batches of n.
        generator: evaluations of generators for one sample; those guided away from the null condition count twice.
        rdm: evaluations of the RDM.
    """

    images: Tensor
    seconds: float
    generator: float
    rdm: float

    def numbers(self) -> dict[str, float]:
        """Return everything but the images."""
        return {name: value for name, value in self._asdict().items() if name != "images"}


class RowCounter:
    """The number of rows that a network has evaluated."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, module: torch.nn.Module, arguments: Any) -> None:
        """Count the rows that a module is about to evaluate, `(B, ...)`."""
        self.rows += len(arguments[0])


@contextmanager
def count_rows(models: Sequence[GenerativeModel]) -> Iterator[RowCounter]:
    """Count the evaluations of the models' networks, each row of a batch as one."""
    counter = RowCounter()
    hooks = [model.network.register_forward_pre_hook(counter) for model in models]
    try:
        yield counter
    finally:
        for hook in hooks:
            hook.remove()


def measure(samples: GeneratedImages) -> SampleCost:
    """Generate the first batch of samples, and count and time it."""
    generators = [samples.pipeline.generator]
    if isinstance(samples.representations, ReencodedRepresentations):
        generators.append(samples.representations.pipeline.generator)
    rdms = [] if samples.pipeline.rdm is None else [samples.pipeline.rdm]
    next(samples.batches([0]))  # work that a device does only once is no cost of samples
    with count_rows(generators) as generator_rows, count_rows(rdms) as rdm_rows:
        start = time.perf_counter()
        images = next(samples.batches(range(min(len(samples), samples.batch_size)))).images.cpu()
        seconds = time.perf_counter() - start
    count = len(images)
    return SampleCost(images, seconds / count, generator_rows.rows / count, rdm_rows.rows / count)


def cached_cost(samples: GeneratedImages, path: Path) -> SampleCost:
    """Return the cost of samples, from the file where it was measured before on the same kind of device."""
    device = str(samples.pipeline.device.type)
    facts = {"samples": samples.facts, "number": min(len(samples), samples.batch_size), "device": device}
    if path.is_file():
        tensors, saved = checkpoint.load_tensors(path)
        if saved["of"] == facts:
            return SampleCost(images=tensors["images"], **saved["cost"])
    cost = measure(samples)
    checkpoint.save_tensors(path, {"images": cost.images}, {"of": facts, "cost": cost.numbers()})
    return cost
