"""Which samples a step sees: a function of (seed, step) alone, shared out over processes and micro-batches."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from rcg.config import TrainConfig
from rcg.core.errors import UserError
from rcg.core.rng import fold
from rcg.data.views import Views
from rcg.distributed.launch import cores

Key = tuple[int, int]
"""(position in the data set, random draw): the draw decides which view of the sample is taken."""


class StepKeys(Sampler[list[Key]]):
    """Endless micro-batches of keys from optimizer step `start` on, for one of `world` processes.

    The positions of all steps are one stream of permutations of the data set, so that a batch may span two epochs
    and be larger than the data set. Process r's micro-batch m is a contiguous part of the step's batch.
    """

    def __init__(self, size: int, config: TrainConfig, seed: int, start: int, rank: int, world: int) -> None:
        self.check(config, world)
        self.size, self.batch, self.accumulate = size, config.batch_size, config.grad_accum_steps
        self.seed, self.start, self.rank, self.world = seed, start, rank, world

    def __iter__(self) -> Iterator[list[Key]]:
        step = self.start
        part = self.batch // (self.world * self.accumulate)
        while True:
            keys = self.keys(step)
            for micro in range(self.accumulate):
                first = (micro * self.world + self.rank) * part
                yield keys[first : first + part]
            step += 1

    @staticmethod
    def check(config: TrainConfig, world: int) -> None:
        """Raise `UserError` for a batch that the processes and micro-batches cannot share evenly."""
        shares = world * config.grad_accum_steps
        if config.batch_size % shares:
            fits = max(shares, round(config.batch_size / shares) * shares)
            raise UserError(
                f"train.batch_size is {config.batch_size}, which {world} process(es) x {config.grad_accum_steps} "
                f"micro-batches cannot share evenly; the nearest that fits is {fits}"
            )

    def keys(self, step: int) -> list[Key]:
        """Return the keys of the whole batch of one optimizer step."""
        places = np.arange(step * self.batch, (step + 1) * self.batch)
        epochs, within = places // self.size, places % self.size
        positions = np.empty(self.batch, dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            positions[chosen] = self._order(int(epoch))[within[chosen]]
        draws = np.random.default_rng(fold(self.seed, "draw", step)).integers(2**31, size=self.batch)
        return list(zip(positions.tolist(), draws.tolist(), strict=True))

    def _order(self, epoch: int) -> np.ndarray:
        # The last permutation is kept: drawing a million positions again at every step would cost more than the step.
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng(fold(self.seed, "order", epoch)).permutation(self.size)
        return self._permutation


class Vectors(Dataset[dict[str, Tensor]]):
    """Named tensors or views of equal length, served a batch at a time; a key's draw chooses the view."""

    in_memory = True

    def __init__(self, columns: Mapping[str, Tensor | Views]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor]:
        """Return the samples of `keys`, already collated."""
        positions, draws = (torch.tensor(column) for column in zip(*keys, strict=True))
        return {
            name: column.rows(positions, draws % column.views) if isinstance(column, Views) else column[positions]
            for name, column in self.columns.items()
        }


def loader(dataset: Any, keys: Sampler[list[Key]], workers: int | None, pin: bool = False) -> DataLoader[Any]:
    """Serve the batches of `keys`; with `workers` None, data in memory needs none, files get one process per core."""
    if workers is None:
        workers = 0 if dataset.in_memory else min(8, cores())
    collate: Any = _as_is if isinstance(dataset, Vectors) else default_collate
    return DataLoader(
        dataset,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=_leave_stopping_to_the_loop,
    )


def _leave_stopping_to_the_loop(worker: int) -> None:
    """Ctrl-C and schedulers signal whole process groups; without its workers the loop could not end its step."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _as_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch
