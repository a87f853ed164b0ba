"""Batches: those of a training step are a function of (seed, step) alone, divided over processes and micro-batches."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from rcg.config import TrainConfig
from rcg.core.errors import UserError
from rcg.core.rng import fold_seed
from rcg.core.signals import STOP_SIGNALS, interrupts_held_back
from rcg.data.views import ShardedViews
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
        self.size, self.batch, self.micro_batches = size, config.batch_size, config.grad_accum_steps
        self.seed, self.start, self.rank, self.world = seed, start, rank, world

    def __iter__(self) -> Iterator[list[Key]]:
        part = self.batch // (self.world * self.micro_batches)
        for step in itertools.count(self.start):
            keys = self.keys(step)
            for micro in range(self.micro_batches):
                first = (micro * self.world + self.rank) * part
                yield keys[first : first + part]

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
            positions[chosen] = _order(self.size, self.seed, int(epoch))[within[chosen]]
        draws = np.random.default_rng(fold_seed(self.seed, "draw", step)).integers(2**31, size=self.batch)
        return list(zip(positions.tolist(), draws.tolist(), strict=True))


@lru_cache(maxsize=1)  # drawing a million positions again at every step would cost more than the step
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(fold_seed(seed, "order", epoch)).permutation(size)


class TensorDataset(Dataset[dict[str, Tensor]]):
    """Named tensors or views of equal length, served a batch at a time; a key's draw chooses the view."""

    in_memory = True

    def __init__(self, columns: Mapping[str, Tensor | ShardedViews]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor]:
        """Return the samples of `keys`, already collated."""
        positions, draws = (torch.tensor(column) for column in zip(*keys, strict=True))
        return {
            name: data.rows(positions, draws % data.views) if isinstance(data, ShardedViews) else data[positions]
            for name, data in self.columns.items()
        }


@contextmanager
def training_batches(
    dataset: Any, keys: Sampler[list[Key]], num_workers: int | None, pin: bool
) -> Iterator[Iterator[Any]]:
    """Serve the batches of `keys`; with `num_workers` None, data in memory needs none, files get one per core.

    The workers end with the block, however it ends. Python would wait for them at its exit: it ends them by a signal
    that they ignore.
    """
    merge: Any = _as_is if isinstance(dataset, TensorDataset) else default_collate
    count = default_workers(dataset) if num_workers is None else num_workers
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_sampler=keys, num_workers=count, collate_fn=merge, pin_memory=pin, worker_init_fn=_ignore_stop
    )
    others = set(multiprocessing.active_children())
    with interrupts_held_back():
        served: Any = iter(loader)
    workers = set(multiprocessing.active_children()) - others
    try:
        yield in_own_words(served)
    finally:
        if workers:
            served._shutdown_workers()  # else torch takes the kill for a failure
        for worker in workers:
            worker.kill()


def batches(dataset: Any, keys: Sequence[Any], batch_size: int) -> Iterator[dict[str, Any]]:
    """Yield the samples of `keys`, in their order, in batches: the one way to go through a data set once."""
    chunks: Any = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    loader: DataLoader[Any] = DataLoader(dataset, batch_sampler=chunks, num_workers=default_workers(dataset))
    with interrupts_held_back():
        served = iter(loader)
    yield from in_own_words(served)


def in_own_words(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches; a `UserError` of a worker says its sentence alone, to which torch adds the worker's traceback."""
    try:
        yield from batches
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None


def default_workers(dataset: Any) -> int:
    """Return how many loader processes pay: none for data in memory, for files one per core, at most 8."""
    return 0 if dataset.in_memory else min(8, cores())


def _ignore_stop(worker: int) -> None:
    """Ctrl-C and schedulers signal whole process groups; without its workers the loop could not end its step."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _as_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch
