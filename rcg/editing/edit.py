"""Edit images along directions of z, or by shifts of h: what they mean changes, the rest stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcg.core.console import say
from rcg.editing.directions import Direction
from rcg.editing.distance import ImageDistance, open_distance
from rcg.editing.images import SquareImage
from rcg.editing.shifts import HSpaceEditor
from rcg.pipeline import Code, Pipeline
from rcg.visual.documents import write_json
from rcg.visual.grids import save_gallery

SHOWN = 16
"""Most images in the panel."""

Editor = Callable[[Code, float, Sequence[int]], Tensor]
"""Returns the images `(B, 3, S, S)` of codes, edited by a strength; the indices of the images seed what is random."""


@dataclass(frozen=True)
class EditOptions:
    """How to edit.

    Attributes:
        strengths: of the edit; 0 is the reconstruction.
        steps: of the sampler.
        seed: of the noise of generators of tokens, of random noise, and of quality boosting.
        batch_size: images at a time.
        own_noise: whether images keep their own noise; if not, theirs is random, and all that z does not say changes.
        guidance: scale in decoding; edits in h have none.
    """

    strengths: Sequence[float] = (-0.3, 0.0, 0.3)
    steps: int = 100
    seed: int = 0
    batch_size: int = 64
    own_noise: bool = True
    guidance: float = 1.0


@dataclass(frozen=True)
class EditedImages:
    """Edited images, and how the encoder sees them; on the CPU.

    Attributes:
        images: `(N, strengths, 3, S, S)` in [0, 1].
        codes: of the originals, N of them.
        after: z of the edited images, `(N, strengths, d)`.
    """

    images: Tensor
    codes: Code
    after: Tensor


def along_z(pipeline: Pipeline, direction: Direction, options: EditOptions) -> Editor:
    """Return what moves z along a direction; z that are normalized one by one are normalized again after the move."""

    def editor(code: Code, strength: float, indices: Sequence[int]) -> Tensor:
        z = pipeline.representation.transform.renormalize(direction.move(code.z, strength))
        moved = code._replace(z=z)
        return pipeline.decode(moved, options.steps, seed=options.seed, indices=indices, guidance=options.guidance)

    return editor


def edit_images(pipeline: Pipeline, originals: Tensor, editor: Editor, options: EditOptions) -> EditedImages:
    """Edit images `(N, 3, S, S)` by each strength."""
    steps = options.steps if options.own_noise and not pipeline.has_tokens else None
    batches, codes = [], []
    for places in torch.arange(len(originals)).split(options.batch_size):
        code = pipeline.encode(originals[places], steps)
        edited = [editor(code, strength, places.tolist()) for strength in options.strengths]
        after = [pipeline.represent(images).cpu() for images in edited]
        batches.append((torch.stack([images.cpu() for images in edited], 1), torch.stack(after, 1)))
        codes.append(code)
    images, after_all = (torch.cat(parts) for parts in zip(*batches, strict=True))
    noises = [code.noise.cpu() for code in codes if code.noise is not None]
    z = torch.cat([code.z.cpu() for code in codes])
    return EditedImages(images, Code(z, torch.cat(noises) if noises else None), after_all)


def edit(
    pipeline: Pipeline,
    images: Sequence[SquareImage],
    direction: Direction,
    others: Sequence[Direction],
    options: EditOptions,
    out: Path,
    h_space: HSpaceEditor | None = None,
) -> EditedImages:
    """Edit images, and write NAME.png and NAME.json of an attribute, NAME-h for edits in h, into `out`.

    The figures are means over the images, measured on edited images that the encoder sees again: by how much the
    attribute's score (`Direction.score`, in units of the strength) and the scores of `others` have changed, the
    `precision` of the edit, and the perceptual distance to the originals. `linearity` is the share of the variance of
    the scores that a straight line over strengths explains, `monotonicity` the rank correlation of an image's scores
    and the strengths, a mean over images.

    Args:
        pipeline: of the run.
        images: what to edit.
        direction: of the attribute.
        others: of attributes that are watched.
        options: how.
        out: folder for results.
        h_space: edits by shifts of h; None: z is moved along `direction`.
    """
    originals = torch.stack([image.pixels for image in images])
    editor = along_z(pipeline, direction, options) if h_space is None else h_space
    edited, distance = edit_images(pipeline, originals, editor, options), open_distance(pipeline)
    scores, rows = [], []
    for number, strength in enumerate(options.strengths):
        change = edited.after[:, number] - edited.codes.z
        score, other_scores = direction.score(change), {other.name: other.score(change) for other in others}
        scores.append(float(score.mean()))
        rows.append(
            {
                "strength": strength,
                "score": scores[-1],
                "others": {name: float(values.mean()) for name, values in other_scores.items()},
                "precision": precision(score, list(other_scores.values())),
                "distance": float(distance(edited.images[:, number], originals).mean()),
            }
        )
    facts: dict[str, Any] = {
        "attribute": direction.name,
        "space": "z" if h_space is None else "h",
        "images": [image.name for image in images],
        "distance": distance.name,
        "steps": options.steps,
        "guidance": options.guidance,
        "noise": "own" if options.own_noise and not pipeline.has_tokens else "random",
        "linearity": linearity(options.strengths, scores),
        "monotonicity": monotonicity(options.strengths, direction.score(edited.after)),
    }
    if h_space is not None:
        facts |= {"block": h_space.block, "phases": asdict(h_space.phases)}
        facts["homogeneity"] = _homogeneity(pipeline, h_space, edited, direction, distance, options)
    name = direction.file_name if h_space is None else f"{direction.file_name}-h"
    write_json(facts | {"rows": rows}, out / f"{name}.json")
    panel = torch.cat([originals[:, None], edited.images], dim=1)[:SHOWN]
    labels = ["original", *(f"{direction.name} {strength:+g}" for strength in options.strengths)]
    title = f"{pipeline.config.folder_name} · {direction.name}"
    picture = out / f"{name}.png"
    save_gallery(panel.flatten(0, 1), labels * len(panel), title, picture, columns=len(labels))
    say(str(picture))
    return edited


def linearity(strengths: Sequence[float], scores: Sequence[float]) -> float | None:
    """Return the squared correlation of scores and strengths; None for fewer than three different strengths."""
    if len(set(strengths)) < 3 or np.ptp(scores) == 0:
        return None
    return float(np.corrcoef(strengths, scores)[0, 1] ** 2)


def monotonicity(strengths: Sequence[float], values: Tensor) -> float | None:
    """Return the mean over images of Spearman's correlation of the strengths and `values` `(N, strengths)`.

    None for fewer than three different strengths; images whose values are all equal count as 0.
    """
    if len(set(strengths)) < 3:
        return None
    from scipy.stats import spearmanr

    varying = [row for row in values.numpy() if np.ptp(row) > 0]
    return float(sum(spearmanr(strengths, row).statistic for row in varying) / len(values))


def precision(score: Tensor, others: Sequence[Tensor]) -> float | None:
    """Return the editing precision ratio (CASL, He et al., 2026, arXiv 2601.15441); None without other attributes.

    Args:
        score: by how much the edited attribute has changed in each image, `(N,)`.
        others: the same of the other attributes.

    Returns:
        The mean size of `score`, over that of `others`: above 1 the edit changes more of what it should.
    """
    if not others or not (size := torch.stack(list(others)).abs().mean()):
        return None
    return float(score.abs().mean() / size)


def _homogeneity(
    pipeline: Pipeline,
    h_space: HSpaceEditor,
    edited: EditedImages,
    direction: Direction,
    distance: ImageDistance,
    options: EditOptions,
) -> dict[str, float] | None:
    """Edit all images by their mean shift, at the largest strength, and compare that with the edits by their own.

    Returns:
        The strength; the change of the attribute's score by the images' own shifts, and by their mean; the perceptual
        distance of these two edits. None where there is but one image, or nothing is edited.
    """
    z, noise = edited.codes
    assert noise is not None  # there is an h-space
    number = max(range(len(options.strengths)), key=lambda place: abs(options.strengths[place]))
    strength, count = options.strengths[number], len(edited.images)
    if count < 2 or strength == 0:
        return None
    batches = []
    for places in torch.arange(count).split(options.batch_size):
        code = Code(*(part[places].to(pipeline.device) for part in (z, noise)))
        batches.append(h_space.by_mean(code, strength, places.tolist()).cpu())
    images = torch.cat(batches)
    after = torch.cat([pipeline.represent(part).cpu() for part in images.split(options.batch_size)])
    own = edited.after[:, number]
    return {
        "strength": strength,
        "score": float(direction.score(own - z).mean()),
        "score_of_mean": float(direction.score(after - z).mean()),
        "distance": float(distance(images, edited.images[:, number]).mean()),
    }
