"""What frozen networks say of images, computed once on all processes and kept in shards; no image is kept in memory.

A shard's name and header say which network saw which images. A killed evaluation loses at most the shards that its
processes were writing, and one with another guidance or another extractor computes only what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.encoding.representation import Representation
from rcg.evaluation.samples import Batch, Source, key
from rcg.metrics.frechet import Gaussian
from rcg.metrics.inception import LOGITS, SPATIAL, Inception
from rcg.visual.grids import save_image

SHARD = 256
"""Images of one file."""
FITTED = 8192
"""Features that a Gaussian is fitted to at a time."""
PIXELS = 32
"""Largest side at which pixels are compared."""


@dataclass(frozen=True)
class View:
    """One way to look at images.

    Attributes:
        name: for people.
        facts: everything that decides what is seen, JSON-serializable.
        see: maps a batch, on the device of the evaluation, to named features `(B, D)`.
        outputs: their names; sets of images are compared in the first.
        distance: what the Frechet distance there is called.
    """

    name: str
    facts: dict[str, Any]
    see: Callable[[Batch], dict[str, Tensor]]
    outputs: tuple[str, ...]
    distance: str = "FD"


@dataclass(frozen=True)
class Features:
    """What one view says of one source, in files.

    Attributes:
        folder: where the shards are.
        facts: the header of each.
        count: how many images there are.
    """

    folder: Path
    facts: dict[str, Any]
    count: int

    def path(self, positions: range) -> Path:
        """Return the file of some images."""
        return self.folder / f"{positions.start:09d}-{positions.stop:09d}.safetensors"

    def read(self, output: str, limit: int | None = None) -> Tensor:
        """Return the features `(N, D)` of an output, or so many of them, drawn at random, in the images' order."""
        if limit is None or limit >= self.count:
            return torch.cat(list(self._shards(output)))
        chosen = torch.zeros(self.count, dtype=torch.bool)
        chosen[torch.randperm(self.count, generator=torch.Generator().manual_seed(0))[:limit]] = True
        parts = zip(self._shards(output), chosen.split(SHARD), strict=True)
        return torch.cat([shard[here] for shard, here in parts])

    def gaussian(self, output: str) -> Gaussian:
        """Return the Gaussian of an output; it is fitted once, some thousand features at a time."""
        path = self.folder / f"gaussian-{output}-{self.count}.safetensors"
        if not path.is_file():
            fitted: Gaussian | None = None
            for rows in self._pieces(output):
                found = Gaussian.fit(rows)
                fitted = found if fitted is None else fitted.merge(found)
            assert fitted is not None
            checkpoint.save_tensors(path, {"mean": fitted.mean, "factor": fitted.factor}, self.facts)
        return Gaussian(self.count, **self._load(path))

    def _pieces(self, output: str) -> Iterator[Tensor]:
        rows: list[Tensor] = []
        for shard in self._shards(output):
            rows.append(shard)
            if sum(map(len, rows)) >= FITTED:
                yield torch.cat(rows)
                rows = []
        if rows:
            yield torch.cat(rows)

    def _shards(self, output: str) -> Iterator[Tensor]:
        for positions in shards(self.count):
            yield self._load(self.path(positions))[output]

    def _load(self, path: Path) -> dict[str, Tensor]:
        part = checkpoint.load(path)
        if part.facts != self.facts:
            raise UserError(f"{path} holds features of other images or of another network: delete {self.folder}")
        return part.tensors


def shards(count: int) -> list[range]:
    """Return the positions of each shard of `count` images."""
    return [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]


def extract(
    source: Source, views: Sequence[View], folder: Path, accelerator: Accelerator, what: str
) -> dict[str, Features]:
    """Look at all images of a source in all views, and return the features by the views' names.

    Args:
        source: the images; each is looked at once for all views that have not seen it.
        views: the networks, on the accelerator's device.
        folder: where features are kept; these get folders of their own in it.
        accelerator: the processes that share the work.
        what: a word for the progress bar.
    """
    home = folder / key(source.facts)
    kept = {
        view.name: Features(
            home / f"{view.name}-{key(view.facts)}", {"images": source.facts, "view": view.facts}, len(source)
        )
        for view in views
    }
    work = [
        (positions, unseen)
        for positions in shards(len(source))
        if (unseen := [view for view in views if not kept[view.name].path(positions).is_file()])
    ]
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked
    mine = work[accelerator.process_index :: accelerator.num_processes]
    total = sum(len(positions) for positions, _ in mine)
    with tqdm(total=total, desc=what, unit="image", disable=not (accelerator.is_main_process and total)) as bar:
        for positions, unseen in mine:
            found = _look(source, unseen, positions, accelerator.device, bar)
            for name, tensors in found.items():
                checkpoint.save_tensors(kept[name].path(positions), tensors, kept[name].facts)
    accelerator.wait_for_everyone()
    return kept


@torch.inference_mode()
def _look(
    source: Source, views: Sequence[View], positions: range, device: torch.device, bar: tqdm
) -> dict[str, dict[str, Tensor]]:
    found: dict[str, list[dict[str, Tensor]]] = {view.name: [] for view in views}
    for batch in source.batches(positions):
        here = batch._replace(images=batch.images.to(device))
        for view in views:
            found[view.name].append({output: x.cpu() for output, x in view.see(here).items()})
        bar.update(len(batch.indices))
    return {
        name: {output: torch.cat([part[output] for part in parts]) for output in parts[0]}
        for name, parts in found.items()
    }


def inception_view(path: Path | None, tap: str, device: torch.device) -> View:
    """Look through torch-fidelity's InceptionV3; None: its own weights, downloaded where they are not yet here.

    Raises:
        UserError: there are no weights, or they do not fit.
    """
    network = Inception(path, tap, *([LOGITS] if tap == "2048" else [])).to(device)
    facts = {
        "network": "torch-fidelity InceptionV3",
        "weights": checkpoint.digest(network.state_dict()),
        "tap": tap,
        "resize": "299 px, bilinear as TensorFlow 1 does it",
    }
    outputs = (*network.taps, *([SPATIAL] if network.has_spatial else []))
    distance = "FID" if tap == "2048" else f"FID-{tap}"
    return View(f"inception-{tap}", facts, lambda batch: network.features(batch.images), outputs, distance)


def encoder_view(name: str, representation: Representation, device: torch.device) -> View:
    """Look through a frozen encoder, projection and normalizer."""
    representation.to(device)
    facts = {"encoder": representation.space.id, "width": representation.space.shape[0]}
    return View(name, facts, lambda batch: {"z": representation(batch.images / 255)}, ("z",))


def own_view(representation: Representation, device: torch.device) -> View:
    """Look through the encoder of the run that is judged."""
    config: Any = representation.encoder.config
    return encoder_view(f"own-{config.name}", representation, device)


def condition_view() -> View:
    """Keep the representations that samples were painted from."""
    return View("condition", {"keeps": "condition"}, lambda batch: {"z": _painted_from(batch)}, ("z",))


def _painted_from(batch: Batch) -> Tensor:
    assert batch.z is not None
    return batch.z.float()


def pixel_view(size: int) -> View:
    """Keep images of `size` px as bytes, large ones averaged down."""
    side = min(size, PIXELS)

    def see(batch: Batch) -> dict[str, Tensor]:
        small = F.adaptive_avg_pool2d(batch.images.float(), side)
        return {"pixels": small.round().to(torch.uint8).flatten(1)}

    return View("pixels", {"pixels": side}, see, ("pixels",))


def saving_view(folder: Path) -> View:
    """Write images as PNG files named by their indices."""

    def see(batch: Batch) -> dict[str, Tensor]:
        for index, image in zip(batch.indices, batch.images, strict=True):
            save_image(image / 255, folder / f"{index:06d}.png")
        return {"indices": torch.tensor(batch.indices)}

    return View("saved", {"folder": str(folder)}, see, ("indices",))
