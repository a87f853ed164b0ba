"""Features of images under frozen networks, computed once on all processes and stored; no image stays in memory.

An evaluation with another guidance or another extractor computes only what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rcg.core import checkpoint
from rcg.data.store import ShardedStore, fill, is_readable
from rcg.evaluation.extractors import FeatureExtractor
from rcg.evaluation.samples import ImageSource, key
from rcg.metrics.frechet import FittedGaussian

SHARD_SIZE = 256
"""Images of one file."""
FIT_ROWS = 8192
"""Features that a Gaussian is fitted to at a time."""


@dataclass(frozen=True)
class Features:
    """The features of one source's images under one extractor, in files."""

    store: ShardedStore

    def read(self, tap: str, limit: int | None = None) -> Tensor:
        """Return the features `(N, D)` of a tap, or at most `limit` of them, drawn at random, in the images' order."""
        shards = self.store.tensors(tap)
        if limit is None or limit >= self.store.count:
            return torch.cat(list(shards))
        chosen = torch.zeros(self.store.count, dtype=torch.bool)
        chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:limit]] = True
        pairs = zip(shards, chosen.split(self.store.shard_size), strict=True)
        return torch.cat([rows[mask] for rows, mask in pairs])

    def gaussian(self, tap: str) -> FittedGaussian:
        """Return the Gaussian of a tap; it is fitted once, some thousand features at a time, and stored."""
        path = self.store.folder / f"gaussian-{tap}-{self.store.count}.safetensors"
        if not is_readable(path):
            merged: FittedGaussian | None = None
            for rows in self._chunks(tap):
                fitted = FittedGaussian.fit(rows)
                merged = fitted if merged is None else merged.merge(fitted)
            assert merged is not None
            checkpoint.save_tensors(path, {"mean": merged.mean, "factor": merged.factor}, self.store.facts)
        return FittedGaussian(self.store.count, **self.store.read(path))

    def _chunks(self, tap: str) -> Iterator[Tensor]:
        """Yield the features of a tap, at least `FIT_ROWS` at a time."""
        rows: list[Tensor] = []
        for shard in self.store.tensors(tap):
            rows.append(shard)
            if sum(map(len, rows)) >= FIT_ROWS:
                yield torch.cat(rows)
                rows = []
        if rows:
            yield torch.cat(rows)


def extract(
    source: ImageSource, extractors: Sequence[FeatureExtractor], folder: Path, accelerator: Accelerator, what: str
) -> dict[str, Features]:
    """Compute the features of all images of a source, and return them by the extractors' names.

    Args:
        source: the images; each is read or generated once for all extractors that lack its features.
        extractors: the networks, on the accelerator's device.
        folder: where features are stored; these get folders of their own in it.
        accelerator: the processes that share the work.
        what: a word for the progress bar.
    """
    by_name = {extractor.name: extractor for extractor in extractors}
    stores = {}
    for name, extractor in by_name.items():
        home = folder / key(source.facts) / f"{name}-{key(extractor.facts)}"
        facts = {"images": source.facts, "extractor": extractor.facts}
        stores[name] = ShardedStore(home, facts, len(source), SHARD_SIZE)

    def compute(
        positions: range, names: Sequence[str], advance: Callable[[int], Any]
    ) -> Mapping[str, Mapping[str, Tensor]]:
        batches: dict[str, list[dict[str, Tensor]]] = {name: [] for name in names}
        with torch.inference_mode():
            for batch in source.batches(positions):
                on_device = batch._replace(images=batch.images.to(accelerator.device))
                for name in names:
                    features = by_name[name].compute(on_device)
                    batches[name].append({tap: x.cpu() for tap, x in features.items()})
                advance(len(batch.indices))
        return {
            name: {tap: torch.cat([part[tap] for part in parts]) for tap in parts[0]} for name, parts in batches.items()
        }

    fill(stores, compute, accelerator, what)
    return {name: Features(store) for name, store in stores.items()}
