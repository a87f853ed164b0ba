"""Edit images along directions of z: what they mean changes, the rest of their code stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rcg.core.console import say
from rcg.editing.directions import Direction
from rcg.editing.distance import open_distance
from rcg.editing.images import SquareImage
from rcg.pipeline import Pipeline
from rcg.visual.documents import write_json
from rcg.visual.grids import save_gallery

SHOWN = 16
"""Most images in the panel."""


@dataclass(frozen=True)
class EditOptions:
    """How to edit.

    Attributes:
        strengths: of the edit; 0 is the reconstruction.
        steps: of the sampler.
        seed: of the noise of generators of tokens.
        batch_size: images at a time.
    """

    strengths: Sequence[float] = (-0.3, 0.0, 0.3)
    steps: int = 100
    seed: int = 0
    batch_size: int = 64


@dataclass(frozen=True)
class EditedImages:
    """Edited images, and how the encoder sees them; on the CPU.

    Attributes:
        images: `(N, strengths, 3, S, S)` in [0, 1].
        before: z of the originals, `(N, d)`.
        after: z of the edited images, `(N, strengths, d)`.
    """

    images: Tensor
    before: Tensor
    after: Tensor


def edit_images(pipeline: Pipeline, originals: Tensor, direction: Direction, options: EditOptions) -> EditedImages:
    """Move images `(N, 3, S, S)` along a direction, by each strength, with their own noise.

    z that are normalized one by one are normalized again after the move.
    """
    batches = []
    for places in torch.arange(len(originals)).split(options.batch_size):
        code = pipeline.encode(originals[places], None if pipeline.has_tokens else options.steps)
        images, after = [], []
        for strength in options.strengths:
            z = pipeline.representation.transform.renormalize(direction.move(code.z, strength))
            edited = pipeline.decode(code._replace(z=z), options.steps, seed=options.seed, indices=places.tolist())
            images.append(edited.cpu())
            after.append(pipeline.represent(edited).cpu())
        batches.append((torch.stack(images, 1), code.z.cpu(), torch.stack(after, 1)))
    return EditedImages(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def edit(
    pipeline: Pipeline,
    images: Sequence[SquareImage],
    direction: Direction,
    others: Sequence[Direction],
    options: EditOptions,
    out: Path,
) -> EditedImages:
    """Edit images, and write NAME.png and NAME.json of an attribute into `out`.

    The figures are means over the images, measured on edited images that the encoder sees again: by how much the
    attribute's score (`Direction.score`) and the scores of `others` have changed, and the perceptual distance to the
    originals.
    """
    originals = torch.stack([image.pixels for image in images])
    edited, distance = edit_images(pipeline, originals, direction, options), open_distance(pipeline)
    rows = []
    for number, strength in enumerate(options.strengths):
        change = edited.after[:, number] - edited.before
        rows.append(
            {
                "strength": strength,
                "score": float(direction.score(change).mean()),
                "others": {other.name: float(other.score(change).mean()) for other in others},
                "distance": float(distance(edited.images[:, number], originals).mean()),
            }
        )
    facts = {"attribute": direction.name, "images": [image.name for image in images], "distance": distance.name}
    write_json(facts | {"rows": rows}, out / f"{direction.file_name}.json")
    panel = torch.cat([originals[:, None], edited.images], dim=1)[:SHOWN]
    labels = ["original", *(f"{direction.name} {strength:+g}" for strength in options.strengths)]
    title = f"{pipeline.config.folder_name} · {direction.name}"
    picture = out / f"{direction.file_name}.png"
    save_gallery(panel.flatten(0, 1), labels * len(panel), title, picture, columns=len(labels))
    say(str(picture))
    return edited
