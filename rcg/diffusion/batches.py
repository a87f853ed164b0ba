"""Many samples of a generative model, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rcg.config import GuidanceConfig, SamplerConfig
from rcg.core import console
from rcg.core.contracts import Process
from rcg.core.rng import SampleNoise
from rcg.diffusion.model import GenerativeModel


@torch.no_grad()
def sample_z(
    model: GenerativeModel,
    cond: Tensor | None,
    count: int,
    seed: int,
    batch_size: int = 1000,
    *,
    guidance: GuidanceConfig | None = None,
    sampler: SamplerConfig | None = None,
    weak: GenerativeModel | None = None,
    wrap_process: Callable[[Process, range], Process] | None = None,
    progress: bool = False,
) -> Tensor:
    """Generate `count` representations `(count, D)` with an RDM, float32 on the CPU; sample i depends on (seed, i).

    Args:
        model: the RDM.
        cond: its conditions, labels `(count,)` or vectors `(count, C)`; None: it has none.
        count: number of samples.
        seed: of the noise.
        batch_size: samples generated at a time.
        guidance: replaces the configured guidance.
        sampler: replaces the configured sampler.
        weak: a worse model of the same data to guide away from.
        wrap_process: changes what the process predicts for the samples at some indices.
        progress: whether to show a progress bar.
    """
    device = next(model.parameters()).device
    batches = []
    with console.progress(total=count, desc="representations", unit="vector", shown=progress) as bar:
        for start in range(0, count, batch_size):
            indices = range(start, min(start + batch_size, count))
            z = model.sample(
                None if cond is None else cond[start : indices.stop].to(device),
                SampleNoise(seed, indices, "rdm", device),
                guidance=guidance,
                sampler=sampler,
                weak=weak,
                wrap_process=None if wrap_process is None else partial(_wrap, wrap_process, indices),
            )
            batches.append(z.float().cpu())
            bar.update(len(indices))
    return torch.cat(batches)


def _wrap(wrap: Callable[[Process, range], Process], indices: range, process: Process) -> Process:
    return wrap(process, indices)
