"""A panel of completed images: the original, the masked image, and several results for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from rcg.core.console import say
from rcg.core.errors import UserError
from rcg.data.images import square
from rcg.data.pictures import read_picture
from rcg.diffusion.inpainting import box, hide, shrink
from rcg.encoding.run_folder import RunFolder
from rcg.encoding.workspace import open_run_representation
from rcg.evaluation.samples import SamplingPlan
from rcg.pipeline import Pipeline
from rcg.visual.grids import save_gallery

Edges = Sequence[float]
"""Left, top, right and bottom edge of a box, as shares of the side."""


@dataclass(frozen=True)
class Hole:
    """Where to generate; at most one of these is given, with none of them everywhere.

    Attributes:
        box: inside of this box.
        outside: outside of this box.
        mask: where this picture is white.
        uncrop: around the image, shrunk to this share of the side.
    """

    box: Edges | None
    outside: Edges | None
    mask: Path | None
    uncrop: float | None

    def apply(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images `(B, 3, S, S)`, shrunk if asked for, and their holes, booleans `(B, S, S)`."""
        size = image.shape[-1]
        if self.uncrop is not None:
            return shrink(image, self.uncrop)
        if self.box is not None:
            hole = box(size, *self.box)
        elif self.outside is not None:
            hole = ~box(size, *self.outside)
        elif self.mask is not None:
            hole = read_square(self.mask, size).mean(0) > 0.5
        else:
            hole = torch.ones(size, size, dtype=torch.bool)
        return image, hole.expand(len(image), -1, -1)


@torch.inference_mode()
def write_panel(
    run: RunFolder,
    generator: str | None,
    paths: Sequence[Path],
    hole: Hole,
    plan: SamplingPlan,
    own_z: bool,
    out: Path,
    accelerator: Accelerator,
) -> None:
    """Write the panel: a row for each image.

    Args:
        run: a run with a generator of tokens.
        generator: name of the generator's folder in a run that has several.
        paths: the images to complete.
        hole: where.
        plan: how each image's results are generated.
        own_z: whether to condition on the representation of the whole image, else on generated ones.
        out: the picture to write.
        accelerator: the processes.

    Raises:
        UserError: a picture cannot be read, the generator is not one of tokens, or its encoder is missing.
    """
    pipeline = Pipeline.load(run.path, generator).to(accelerator.device, plan.precision)
    name = generator or pipeline.config.folder_name
    original = torch.stack([read_square(path, pipeline.image_size) for path in paths])
    image, holes = hole.apply(original)
    z = _represent(original, pipeline, run, name, accelerator) if own_z else None
    results = []
    for position in range(len(image)):
        row, count = slice(position, position + 1), plan.count
        completed = pipeline.inpaint(
            image[row].expand(count, -1, -1, -1),
            holes[row].expand(count, -1, -1),
            plan.options,
            z=None if z is None else z[row].expand(count, -1),
        )
        results.append(completed.images.cpu())
    panel = torch.cat([original[:, None], hide(image, holes)[:, None], torch.stack(results)], dim=1)
    captions = [text for path in paths for text in (path.name, "masked", *[""] * plan.count)]
    title = f"{run.path} · {name} · seed {plan.options.seed}"
    save_gallery(panel.flatten(0, 1), captions, title, out, columns=2 + plan.count)
    say(str(out))


def _represent(
    image: Tensor, pipeline: Pipeline, run: RunFolder, generator: str, accelerator: Accelerator
) -> Tensor | None:
    """Return z `(B, D)` of images, None where the generator has another condition."""
    space = pipeline.generator.cond
    if space is None or space.vocab is not None:
        return None
    saved = pipeline.parts.get("encoder")
    try:
        representation = open_run_representation(run, generator, space, saved, accelerator)
    except UserError as error:
        raise UserError(f"{error}; or use --condition generated") from None
    z: Tensor = representation.to(pipeline.device)(image.to(pipeline.device))
    return z


def read_square(path: Path, size: int) -> Tensor:
    """Read the middle square `(3, size, size)` of a picture, in [0, 1]; raises `UserError` if it cannot be read."""
    return square(read_picture(path), size)
