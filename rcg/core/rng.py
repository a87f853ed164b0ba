"""Randomness as a function of names and numbers: (seed, step, place) in training, (seed, sample index) in sampling.

What is random about the samples of a training step is drawn by `draws()`. The loop says in `batch_draws` which places
of the whole batch the samples have; every process and every micro-batch draws for all places, and takes its own. So a
sample gets the same draws however many processes and micro-batches share the batch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from rcg.core.contracts import Noise


def fold_seed(*keys: int | str) -> int:
    """Mix integers and words into one well-spread 63-bit seed."""
    words = [zlib.crc32(key.encode()) if isinstance(key, str) else key for key in keys]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


class BatchDraws:
    """Random draws `(B, ...)` for samples at some places of a batch: rows of the draws for the whole batch.

    It has generators of its own, so that nobody who draws from torch's global ones in between moves them.
    """

    def __init__(self, seed: int | None, first: int = 0, count: int = 0, total: int = 0) -> None:
        """Draw for the places `first` to `first + count` of `total`; seed None: from torch's generators, for any B."""
        self.seed, self.first, self.count, self.total = seed, first, count, total
        self._generators: dict[str, torch.Generator] = {}

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return uniform draws from [0, 1) `(B, ...)`."""
        return self.own(self.uniform_of_all(shape, device))

    def uniform_of_all(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return the draws `(total, ...)` of the whole batch, of which `uniform` returns the rows `own`."""
        return torch.rand(self._of_all(shape), device=device, generator=self._generator(device))

    def normal(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return standard normal draws `(B, ...)`."""
        return self.own(torch.randn(self._of_all(shape), device=device, generator=self._generator(device)))

    def integers(self, high: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return uniform integers from 0 to `high - 1`, int64 `(B, ...)`."""
        return self.own(torch.randint(high, self._of_all(shape), device=device, generator=self._generator(device)))

    def order(self, count: int, device: torch.device) -> Tensor:
        """Return a permutation of `count` numbers, the same on all processes."""
        return torch.randperm(count, device=device, generator=self._generator(device))

    def bits(self, shape: Sequence[int]) -> Tensor:
        """Return 16 random bits for each element, int16 `(B, ...)` on the CPU, much faster than torch draws numbers."""
        cpu = torch.device("cpu")
        stream = np.random.PCG64(int(torch.randint(2**63 - 1, (), generator=self._generator(cpu))))
        size = math.prod(shape)
        start = self.first * (math.prod(self._of_all(shape)) // max(1, self.total))
        stream.advance(start // 4)  # a word holds four elements
        words = stream.random_raw(-(-(start % 4 + size) // 4))
        return torch.from_numpy(words.view(np.int16))[start % 4 :][:size].view(tuple(shape))

    def own(self, rows: Tensor) -> Tensor:
        """Return the rows `(B, ...)` of these samples among those of the whole batch `(total, ...)`."""
        return rows if self.seed is None else rows[self.first : self.first + self.count]

    @contextmanager
    def spread(self, share: float, count: int) -> Iterator[Tensor]:
        """Draw for a share of the batch alone, at places spread evenly over it, from the first place on.

        Args:
            share: 0.5 is every second place.
            count: of the samples at hand, B.

        Yields:
            which of the B samples these are, ascending.
        """
        before = self.first, self.count, self.total
        ranks = [math.ceil(place * share) for place in range(self.first, self.first + count + 1)]
        self.first, self.count, self.total = ranks[0], ranks[-1] - ranks[0], math.ceil(self.total * share)
        try:
            yield torch.tensor([i for i in range(count) if ranks[i + 1] > ranks[i]], dtype=torch.long)
        finally:
            self.first, self.count, self.total = before

    def replay(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return two contexts: in the second one, what was drawn in the first is drawn again."""
        start = {name: generator.get_state() for name, generator in self._generators.items()}
        return nullcontext(), self._from(start)

    @contextmanager
    def _from(self, states: dict[str, Tensor]) -> Iterator[None]:
        generators, self._generators = self._generators, {}
        for name, state in states.items():
            self._generators[name] = torch.Generator(name)
            self._generators[name].set_state(state)
        try:
            yield
        finally:
            self._generators = generators

    def _generator(self, device: torch.device) -> torch.Generator | None:
        if self.seed is None:
            return None
        name = str(device)
        if name not in self._generators:
            self._generators[name] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[name]

    def _of_all(self, shape: Sequence[int]) -> tuple[int, ...]:
        if self.seed is None:
            return tuple(shape)
        if shape[0] != self.count:
            raise ValueError(
                f"draws {tuple(shape)} in a training step with {self.count} samples: a row for each is needed"
            )
        return (self.total, *shape[1:])


_anywhere = BatchDraws(None)
_active: list[BatchDraws] = []


@contextmanager
def batch_draws(seed: int, first: int, count: int, total: int) -> Iterator[None]:
    """Let `draws` draw for the places `first` to `first + count` of a batch of `total` samples."""
    _active.append(BatchDraws(seed, first, count, total))
    try:
        yield
    finally:
        _active.pop()


def draws() -> BatchDraws:
    """Return what draws for the samples of the training step; outside of one, it draws from torch's generators.

    So it does in compiled networks, which know nothing of generators.
    """
    return _active[-1] if _active and not torch.compiler.is_compiling() else _anywhere


class SampleNoise:
    """One random stream per sample of a batch, so that a sample never depends on its batch.

    Noise is drawn on the CPU, whose generator is the same on every machine.
    """

    def __init__(self, seed: int, indices: Sequence[int], use: str, device: torch.device | str = "cpu") -> None:
        """Open the streams of the samples `indices`; streams of another `use` are independent of them."""
        self.device = torch.device(device)
        self.generators = [torch.Generator().manual_seed(fold_seed(seed, index, use)) for index in indices]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return `(B, *shape)` standard normal draws."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self.generators]).to(self.device)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Return `(B, *shape)` uniform draws from [0, 1)."""
        return torch.stack([torch.rand(tuple(shape), generator=g) for g in self.generators]).to(self.device)


class ScaledNoise:
    """A noise source that multiplies the normal draws of another one by a factor."""

    def __init__(self, noise: Noise, factor: float) -> None:
        self.noise, self.factor = noise, factor

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return `(B, *shape)` normal draws with std `factor`."""
        return self.factor * self.noise.normal(shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Return `(B, *shape)` uniform draws from [0, 1), unchanged."""
        return self.noise.uniform(shape)


class FixedFirstDraw:
    """A noise source whose first draw is given: samplers start there."""

    def __init__(self, noise: Noise, first: Tensor) -> None:
        """Give `first` `(B, *S)`, then the draws of `noise`."""
        self.noise, self.first = noise, [first]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return the given draw, once, then `(B, *shape)` standard normal draws."""
        return self.first.pop() if self.first else self.noise.normal(shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Return `(B, *shape)` uniform draws from [0, 1)."""
        return self.noise.uniform(shape)
