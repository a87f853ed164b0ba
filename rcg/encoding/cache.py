"""Caches of a data set seen by frozen networks, filled in parallel: encoding at every epoch wastes hours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rcg.core.console import say
from rcg.core.contracts import Autoencoder
from rcg.data.images import Images
from rcg.data.loading import batches
from rcg.data.store import ShardedStore, fill
from rcg.data.views import ShardedViews
from rcg.encoding.representation import Representation

SHARD_SIZE = 4096
BATCH_SIZE = 256


@dataclass(frozen=True)
class ViewCache:
    """The output of one frozen network for one set of images in deterministic views, complete or not.

    Attributes:
        store: where the outputs `(n, V, *S)` are, as `rows`.
        images: N images.
        views: V, views of each image.
        title: a few words for progress bars and messages.
    """

    store: ShardedStore
    images: Images
    views: int
    title: str

    @property
    def is_complete(self) -> bool:
        """Whether all shards are written."""
        return not self.store.missing

    def fill(self, encode: Callable[[Tensor], Tensor], accelerator: Accelerator) -> ShardedViews:
        """Write the missing shards on all processes, and open the cache.

        Args:
            encode: images `(B, 3, H, W)` in [0, 1] on the accelerator's device -> the rows to store, `(B, *S)`.
            accelerator: the processes that share the work; all of them get the result.
        """
        if self.is_complete:
            accelerator.wait_for_everyone()
            say(f"{self.title}: {len(self.images)} images in {self.views} view(s) from {self.store.folder}")
            return self.open()

        def compute(positions: range, names: Sequence[str], advance: Callable[[int], Any]) -> Mapping[str, Any]:
            keys = [(position, view) for position in positions for view in range(self.views)]
            rows = []
            for batch in batches(self.images, keys, BATCH_SIZE):
                rows.append(encode(batch["image"].to(accelerator.device)).cpu())
                advance(len(rows[-1]))
            shard = torch.cat(rows).unflatten(0, (len(positions), self.views))
            return {"cache": {"rows": shard}}

        fill({"cache": self.store}, compute, accelerator, self.title, self.views)
        return self.open()

    def open(self) -> ShardedViews:
        """Serve a complete cache; rows stay in their files and are read as they are used."""
        return ShardedViews(list(self.store.tensors("rows")), origin=self.store.folder)


def representation_cache(
    images: Images, representation: Representation, views: int, home: Path, split: str
) -> ViewCache:
    """Return the cache of raw representations `(N, V, D)`, before projection and normalizer, in a folder of `home`."""
    facts = {"encoder": representation.encoder_id, "images": images.fingerprint, "views": views, "count": len(images)}
    name = f"{split}-{representation.encoder_id[:8]}-{images.fingerprint[:8]}-{views}"
    return ViewCache(
        ShardedStore(home / name, facts, len(images), SHARD_SIZE), images, views, f"representations of {split} images"
    )


def latent_cache(images: Images, autoencoder: Autoencoder, views: int, home: Path, split: str) -> ViewCache:
    """Return the cache of an autoencoder's posteriors `(N, V, *S)`, made small by `pack`, in a folder of `home`."""
    space = autoencoder.space.id
    facts = {"autoencoder": space, "images": images.fingerprint, "views": views, "count": len(images)}
    name = f"{split}-latents-{space.rpartition(':')[2][:8]}-{images.fingerprint[:8]}-{views}"
    return ViewCache(
        ShardedStore(home / name, facts, len(images), SHARD_SIZE), images, views, f"latents of {split} images"
    )


@torch.no_grad()
def pack(autoencoder: Autoencoder, image: Tensor) -> Tensor:
    """Return the posteriors of images `(B, 3, H, W)` in few bytes: small integers, or half precision."""
    posterior = autoencoder.posterior(image)
    if posterior.is_floating_point():
        return posterior.half()
    is_small = (autoencoder.space.vocab or 0) <= torch.iinfo(torch.int16).max
    return posterior.to(torch.int16 if is_small else torch.int32)


def unpack(rows: Tensor) -> Tensor:
    """Return packed posteriors as the types that networks take."""
    return rows.float() if rows.is_floating_point() else rows.long()
