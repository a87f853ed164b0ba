"""What samples cost: network evaluations, counted as they happen, and seconds; the images drawn for it are shown."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rcg.comparison.arms import Encoded
from rcg.core import checkpoint
from rcg.diffusion.model import GenerativeModel
from rcg.evaluation.samples import Generated


class Cost(NamedTuple):
    """What one sample costs, and what the first ones look like.

    Attributes:
        images: bytes `(n, 3, H, W)`.
        seconds: of one sample, drawn in batches of n.
        generator: evaluations of generators for one sample; guided ones count twice.
        rdm: evaluations of the RDM.
    """

    images: Tensor
    seconds: float
    generator: float
    rdm: float


class Count:
    """How many rows a network was shown."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, module: torch.nn.Module, arguments: Any) -> None:
        """Count what a module is about to be given, `(B, ...)`."""
        self.rows += len(arguments[0])


@contextmanager
def counted(models: Sequence[GenerativeModel]) -> Iterator[Count]:
    """Count the evaluations of the models' networks, each row of a batch as one."""
    count = Count()
    hooks = [model.network.register_forward_pre_hook(count) for model in models]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()


def measure(samples: Generated) -> Cost:
    """Draw the first batch of samples, and count and time it."""
    first = samples.told.pipeline if isinstance(samples.told, Encoded) else None
    pipelines = [pipeline for pipeline in (samples.pipeline, first) if pipeline is not None]
    rdm = samples.pipeline.rdm
    next(samples.batches([0]))  # what is only done once, on a device, is not a cost of samples
    with counted([p.generator for p in pipelines]) as generators, counted([rdm] if rdm else []) as rdms:
        start = time.perf_counter()
        images = next(samples.batches(range(min(len(samples), samples.batch_size)))).images.cpu()
        seconds = time.perf_counter() - start
    return Cost(images, seconds / len(images), generators.rows / len(images), rdms.rows / len(images))


def measured(samples: Generated, path: Path) -> Cost:
    """Return the cost of samples, from the file where it was measured before on the same kind of device."""
    device = str(samples.pipeline.device.type)
    facts = {"samples": samples.facts, "number": min(len(samples), samples.batch_size), "device": device}
    part = checkpoint.load(path) if path.is_file() else None
    if part is None or part.facts["of"] != facts:
        found = measure(samples)
        numbers = {name: value for name, value in found._asdict().items() if name != "images"}
        checkpoint.save_tensors(path, {"images": found.images}, {"of": facts, **numbers})
        return found
    return Cost(part.tensors["images"], *(part.facts[name] for name in Cost._fields[1:]))
