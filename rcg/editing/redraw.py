"""Redraw images (SDEdit, Meng et al., ICLR 2022): they go part of the way to noise, and are generated from there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from rcg.core.console import say
from rcg.core.errors import UserError
from rcg.editing.distance import open_distance
from rcg.editing.edit import SHOWN
from rcg.editing.images import SquareImage
from rcg.pipeline import Pipeline, SamplingOptions
from rcg.visual.documents import write_json
from rcg.visual.grids import save_gallery


def redraw(
    pipeline: Pipeline,
    images: Sequence[SquareImage],
    strengths: Sequence[float],
    options: SamplingOptions,
    out: Path,
    like: SquareImage | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Write redraw.png and redraw.json into `out`, and return the images `(N, strengths, 3, S, S)` on the CPU.

    For each strength the file holds the mean perceptual distance to the originals and, where the generator is
    conditioned on representations, the mean cosine of those of the results and of what they were conditioned on.

    Args:
        pipeline: of the run.
        images: what to redraw.
        strengths: shares of the way to noise, from 0 (the image, through the autoencoder) to 1 (a new image).
        options: how to generate.
        out: folder for results.
        like: the image whose representation to condition on; None: each image's own.
        batch_size: images at a time.

    Raises:
        UserError: the options do not fit, or a representation is asked of a generator that is not conditioned on one.
    """
    originals, z = torch.stack([image.pixels for image in images]), None
    if pipeline.config.condition == "representation":
        shown = originals if like is None else like.pixels.expand_as(originals)
        z = torch.cat([pipeline.represent(part).cpu() for part in shown.split(batch_size)])
    elif like is not None:
        raise UserError(
            f"{pipeline.config.folder_name} is conditioned on {pipeline.config.condition}, not on representations: "
            f"leave --like out"
        )
    redrawn = torch.stack(
        [_redrawn(pipeline, originals, strength, options, z, batch_size) for strength in strengths], 1
    )
    distance, rows = open_distance(pipeline), []
    for number, strength in enumerate(strengths):
        row = {"strength": strength, "distance": float(distance(redrawn[:, number], originals).mean())}
        if z is not None:
            after = torch.cat([pipeline.represent(part).cpu() for part in redrawn[:, number].split(batch_size)])
            row["cosine"] = float(cosine_similarity(after, z).mean())
        rows.append(row)
    facts = {
        "images": [image.name for image in images],
        "like": None if like is None else like.name,
        "seed": options.seed,
        "steps": options.steps,
        "guidance": options.guidance,
        "distance": distance.name,
    }
    write_json(facts | {"rows": rows}, out / "redraw.json")
    panel = torch.cat([originals[:, None], redrawn], dim=1)[:SHOWN]
    labels = ["original", *(f"redrawn {strength:g}" for strength in strengths)]
    title = f"{pipeline.config.folder_name}{'' if like is None else f' · like {like.name}'} · seed {options.seed}"
    save_gallery(panel.flatten(0, 1), labels * len(panel), title, out / "redraw.png", columns=len(labels))
    say(str(out / "redraw.png"))
    return redrawn


def _redrawn(
    pipeline: Pipeline, originals: Tensor, strength: float, options: SamplingOptions, z: Tensor | None, batch_size: int
) -> Tensor:
    """Return the images `(N, 3, S, S)` redrawn by one strength."""
    batches = []
    for places in torch.arange(len(originals)).split(batch_size):
        own = None if z is None else z[places]
        batches.append(pipeline.redraw(originals[places], strength, options, z=own, indices=places.tolist()).images)
    return torch.cat([batch.cpu() for batch in batches])
