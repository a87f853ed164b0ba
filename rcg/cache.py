"""Representations of a data set, computed once on all processes and kept: encoding again at every epoch wastes hours.

A cache is a folder of safetensors shards whose name and headers say which encoder saw which images; a killed run
loses at most the shards it was writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from rcg import checkpoint
from rcg.data import Images
from rcg.errors import UserError
from rcg.parallel import cores
from rcg.representation import Representation
from rcg.vectors import Views

SHARD = 4096


def representations(
    images: Images, representation: Representation, views: int, folder: Path, accelerator: Accelerator, what: str
) -> Views:
    """Return raw representations `(N, views, D)` of all images, from `folder` where they are there already.

    They stay in their files and are read from there as they are used.

    Args:
        images: N images, each with deterministic views.
        representation: the frozen encoder; its normaliser is not applied.
        views: how many views of each image.
        folder: where caches live; this one gets a folder of its own in it.
        accelerator: the processes that share the work; all of them get the result.
        what: a word for the progress bar.
    """
    folder = folder / f"{what}-{representation.encoder_id[:8]}-{images.fingerprint[:8]}-{views}"
    facts = {"encoder": representation.encoder_id, "images": images.fingerprint, "views": views, "count": len(images)}
    starts = list(range(0, len(images), SHARD))
    paths = [folder / f"shard-{start:09d}.safetensors" for start in starts]
    missing = [pair for pair in zip(starts, paths, strict=True) if not pair[1].is_file()]
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked
    if missing:
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        total = sum(min(SHARD, len(images) - start) for start, _ in mine) * views
        representation.encoder.to(accelerator.device)  # its transform works on the CPU, where the rows are read
        with tqdm(total=total, desc=f"encoding {what} images", disable=not accelerator.is_main_process) as bar:
            for start, path in mine:
                shard = _encode(
                    images, representation, range(start, min(start + SHARD, len(images))), views, bar, accelerator
                )
                checkpoint.save_tensors(path, {"rep": shard}, facts)
        accelerator.wait_for_everyone()
    elif accelerator.is_main_process:
        print(f"representations of {len(images)} {what} images x {views} views: from {folder}", flush=True)
    return Views([_read(path, facts) for path in paths])


def _encode(
    images: Images, representation: Representation, positions: range, views: int, bar: tqdm, accelerator: Accelerator
) -> Tensor:
    keys = [(position, view) for position in positions for view in range(views)]
    workers = 0 if images.in_memory else min(8, cores())
    batches: DataLoader[Any] = DataLoader(images, batch_sampler=list(_chunks(keys, 256)), num_workers=workers)
    found = []
    for batch in batches:
        found.append(representation.encode(batch["image"].to(accelerator.device)).cpu())
        bar.update(len(found[-1]))
    return torch.cat(found).view(len(positions), views, -1)


def _chunks(keys: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _read(path: Path, facts: dict[str, object]) -> Tensor:
    part = checkpoint.load(path)
    if part.facts != facts:
        raise UserError(
            f"{path} caches other images or another encoder ({part.facts}, not {facts}): delete {path.parent}"
        )
    return part.tensors["rep"]
