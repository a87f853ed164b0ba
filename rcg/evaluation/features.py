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
from rcg.core.checkpoint import clear_temporaries
from rcg.data.store import ShardedStore, fill, read_if_whole
from rcg.evaluation.extractors import FeatureExtractor, image_keeper
from rcg.evaluation.samples import ImageSource, key
from rcg.metrics.frechet import FittedGaussian
from rcg.pipeline import check_finite
from rcg.visual.grids import save_image

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
        if read_if_whole(path) is None:
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


class PictureStore(ShardedStore):
    """Images as PNG files, named by their positions: those that are missing are written, whatever became of them."""

    @property
    def missing(self) -> list[range]:
        """The shards of which a picture is missing."""
        present = {path.name for path in self.folder.glob("*.png")}
        return [shard for shard in self.shards if not present.issuperset(map(self._name, shard))]

    def write(self, positions: range, tensors: Mapping[str, Tensor]) -> None:
        """Write the images `(n, 3, H, W)`, bytes, at some positions."""
        for position, image in zip(positions, tensors["images"], strict=True):
            save_image(image / 255, self.folder / self._name(position))

    @staticmethod
    def _name(position: int) -> str:
        return f"{position:06d}.png"


def extract(
    source: ImageSource,
    extractors: Sequence[FeatureExtractor],
    folder: Path,
    accelerator: Accelerator,
    what: str,
    pictures: Path | None = None,
) -> dict[str, Features]:
    """Compute the features of all images of a source, and return them by the extractors' names.

    Args:
        source: the images; each is read or generated once for all extractors that lack its features.
        extractors: the networks, on the accelerator's device.
        folder: where features are stored; these get folders of their own in it.
        accelerator: the processes that share the work.
        what: a word for the progress bar.
        pictures: folder into which the images are written as PNG files; None: they are not.

    Raises:
        UserError: features are not finite.
    """
    by_name = {extractor.name: extractor for extractor in extractors}
    stores: dict[str, ShardedStore] = {}
    for name, extractor in by_name.items():
        home = folder / key(source.facts) / f"{name}-{key(extractor.facts)}"
        facts = {"images": source.facts, "extractor": extractor.facts}
        stores[name] = ShardedStore(home, facts, len(source), SHARD_SIZE)

    kept = image_keeper()
    if pictures is not None:
        by_name[kept.name] = kept
        stores[kept.name] = PictureStore(pictures, {}, len(source), SHARD_SIZE)
        if accelerator.is_main_process and pictures.is_dir():
            clear_temporaries(pictures)

    def compute(
        positions: range, names: Sequence[str], advance: Callable[[int], Any]
    ) -> Mapping[str, Mapping[str, Tensor]]:
        batches: dict[str, list[dict[str, Tensor]]] = {name: [] for name in names}
        with torch.inference_mode():
            for batch in source.batches(positions):
                on_device = batch._replace(images=batch.images.to(accelerator.device))
                for name in names:
                    features = by_name[name].compute(on_device)
                    for x in features.values():
                        check_finite(x, f"what {name} computes of the {what}")
                    batches[name].append({tap: x.cpu() for tap, x in features.items()})
                advance(len(batch.indices))
        return {
            name: {tap: torch.cat([part[tap] for part in parts]) for tap in parts[0]} for name, parts in batches.items()
        }

    fill(stores, compute, accelerator, what)
    return {name: Features(store) for name, store in stores.items() if name != kept.name}
