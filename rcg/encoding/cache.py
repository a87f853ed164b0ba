"""What frozen networks say of a data set, computed once on all processes: encoding at every epoch wastes hours.

A cache is a folder of safetensors shards whose name and headers say which network saw which images; a killed run
loses at most the shards it was writing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from rcg.core import checkpoint
from rcg.core.contracts import LearnedAutoencoder
from rcg.core.errors import UserError
from rcg.data.images import Images
from rcg.data.views import Views
from rcg.distributed.launch import cores
from rcg.encoding.representation import Representation

SHARD = 4096


@dataclass(frozen=True)
class Cache:
    """A folder in which one network's view of one set of images is kept, whole or in part.

    Attributes:
        kind: `representations` or `latents`.
        facts: what the header of each shard says: network, images, views, count.
        folder: where the shards are.
        images: N images, each with deterministic views.
        views: how many views of each image.
    """

    kind: str
    facts: dict[str, object]
    folder: Path
    images: Images
    views: int

    @property
    def shards(self) -> list[tuple[range, Path]]:
        """The positions of images, and the file that holds them."""
        count = len(self.images)
        return [
            (range(start, min(start + SHARD, count)), self.folder / f"shard-{start:09d}.safetensors")
            for start in range(0, count, SHARD)
        ]

    @property
    def missing(self) -> list[tuple[range, Path]]:
        """The shards that are not written yet."""
        return [(positions, path) for positions, path in self.shards if not path.is_file()]

    def fill(self, encode: Callable[[Tensor], Tensor], accelerator: Accelerator, what: str) -> Views:
        """Write the missing shards and serve all of them.

        Args:
            encode: images `(B, 3, H, W)` in [0, 1] on the accelerator's device -> what is kept of them, `(B, *S)`.
            accelerator: the processes that share the work; all of them get the result.
            what: a word for the progress bar.
        """
        missing = self.missing
        accelerator.wait_for_everyone()  # nobody writes before everybody has looked
        if not missing:
            return self.serve(accelerator, what)
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        total = sum(len(positions) for positions, _ in mine) * self.views
        with tqdm(total=total, desc=f"encoding {what} images", disable=not accelerator.is_main_process) as bar:
            for positions, path in mine:
                shard = _encode(self.images, encode, positions, self.views, bar, accelerator.device)
                checkpoint.save_tensors(path, {"rep": shard}, self.facts)
        accelerator.wait_for_everyone()
        return self._open()

    def serve(self, accelerator: Accelerator, what: str) -> Views:
        """Serve a whole cache, and say so."""
        if accelerator.is_main_process:
            print(
                f"{self.kind} of {len(self.images)} {what} images x {self.views} views: from {self.folder}", flush=True
            )
        return self._open()

    def _open(self) -> Views:
        return Views([_read(path, self.facts) for _, path in self.shards])


def representations(
    images: Images, representation: Representation, views: int, folder: Path, accelerator: Accelerator, what: str
) -> Views:
    """Return raw representations `(N, views, D)` of all images, from `folder` where they are there already.

    They stay in their files and are read from there as they are used.

    Args:
        images: N images, each with deterministic views.
        representation: the frozen encoder; its normalizer is not applied.
        views: how many views of each image.
        folder: where caches live; this one gets a folder of its own in it.
        accelerator: the processes that share the work; all of them get the result.
        what: a word for the progress bar.
    """
    facts = {"encoder": representation.encoder_id, **_of(images, views)}
    name = f"{what}-{representation.encoder_id[:8]}-{images.fingerprint[:8]}-{views}"
    representation.encoder.to(accelerator.device)  # its transform works on the CPU, where the rows are read
    return Cache("representations", facts, folder / name, images, views).fill(representation.encode, accelerator, what)


def latents(images: Images, autoencoder: LearnedAutoencoder, views: int, folder: Path, what: str) -> Cache:
    """Return the cache, filled or not, of an autoencoder's posteriors `(N, views, *S)`; `keep` makes what it holds."""
    digest = autoencoder.space.id.rpartition(":")[2]
    facts = {"autoencoder": autoencoder.space.id, **_of(images, views)}
    name = f"{what}-latents-{digest[:8]}-{images.fingerprint[:8]}-{views}"
    return Cache("latents", facts, folder / name, images, views)


@torch.no_grad()
def keep(autoencoder: LearnedAutoencoder, image: Tensor) -> Tensor:
    """Return the posteriors of images `(B, 3, H, W)` in few bytes: small integers, or half precision."""
    found = autoencoder.posterior(image)
    if found.is_floating_point():
        return found.half()
    small = (autoencoder.space.vocab or 0) <= torch.iinfo(torch.int16).max
    return found.to(torch.int16 if small else torch.int32)


def widen(rows: Tensor) -> Tensor:
    """Return what `keep` made small as the types that networks take."""
    return rows.float() if rows.is_floating_point() else rows.long()


def _of(images: Images, views: int) -> dict[str, object]:
    return {"images": images.fingerprint, "views": views, "count": len(images)}


def _encode(
    images: Images,
    encode: Callable[[Tensor], Tensor],
    positions: range,
    views: int,
    bar: tqdm,
    device: torch.device,
) -> Tensor:
    keys = [(position, view) for position in positions for view in range(views)]
    workers = 0 if images.in_memory else min(8, cores())
    batches: DataLoader[Any] = DataLoader(images, batch_sampler=list(_chunks(keys, 256)), num_workers=workers)
    found = []
    for batch in batches:
        found.append(encode(batch["image"].to(device)).cpu())
        bar.update(len(found[-1]))
    return torch.cat(found).unflatten(0, (len(positions), views))


def _chunks(keys: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _read(path: Path, facts: dict[str, object]) -> Tensor:
    part = checkpoint.load(path)
    if part.facts != facts:
        raise UserError(
            f"{path} caches other images or another network ({part.facts}, not {facts}): delete {path.parent}"
        )
    return part.tensors["rep"]
