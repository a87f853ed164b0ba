"""A panel of completed images: the original, the masked image, and several results for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from rcg.core.console import say
from rcg.core.errors import UserError
from rcg.data.images import LONGEST, square
from rcg.data.pictures import read_picture
from rcg.diffusion.inpainting import box, hide, shrink, touching
from rcg.diffusion.repaint import Resampling
from rcg.encoding.run_folder import RunFolder
from rcg.evaluation.samples import SamplingPlan
from rcg.pipeline import Pipeline
from rcg.visual.grids import save_gallery

Edges = Sequence[float]
"""Left, top, right and bottom edge of a box, as shares of the side."""
RepresentationOf = Literal["visible", "generated", "original"]
"""What results are conditioned on: the representation of the visible part, the hole filled with its mean color; one
that the RDM generates; or that of the whole original, which knows what the hole hides."""


@dataclass(frozen=True)
class Hole:
    """Where to generate; at most one of these is given, with none of them everywhere.

    Attributes:
        box: inside of this box.
        outside: outside of this box.
        mask: where this picture is white; it has the size of each image, or of the model's images.
        uncrop: around the image, shrunk to this share of the side.
    """

    box: Edges | None
    outside: Edges | None
    mask: Path | None
    uncrop: float | None

    def apply(self, picture: Tensor, size: int, name: str) -> tuple[Tensor, Tensor]:
        """Return the square of a picture `(3, H, W)`, `(3, S, S)`, and its hole, booleans `(S, S)`.

        What is hidden is filled in before the picture is resized, so that it has no influence on the pixels beside it.

        Raises:
            UserError: there is nothing to generate, or the mask has another size.
        """
        if self.uncrop is not None:
            image, hole = shrink(square(picture, size)[None], self.uncrop)
            return image[0], hole[0]
        height, width = picture.shape[1:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        hidden = None
        if self.box is not None:
            hole = box(size, *self.box)
        elif self.outside is not None:
            hole = ~box(size, *self.outside)
        elif self.mask is not None:
            mask = read_image(self.mask).mean(0) > 0.5
            if mask.shape == (height, width):
                hidden, hole = mask, _touched(mask[top : top + side, left : left + side], size)
            elif mask.shape == (size, size):
                hole = mask
            else:
                raise UserError(
                    f"--mask {self.mask} is {mask.shape[1]} x {mask.shape[0]}, but {name} is {width} x {height}: a "
                    f"mask has the size of the image, or the model's {size} x {size}"
                )
        else:
            hole = torch.ones(size, size, dtype=torch.bool)
        if not hole.any():
            raise UserError(f"--mask {self.mask} is black on the middle square of {name}: nothing is to be generated")
        if hidden is None:
            hidden = torch.zeros(height, width, dtype=torch.bool)
            hidden[top : top + side, left : left + side] = _touched(hole, side)
        return square(hide(picture[None], hidden[None])[0], size), hole


@torch.inference_mode()
def write_panel(
    run: RunFolder,
    generator: str | None,
    paths: Sequence[Path],
    hole: Hole,
    plan: SamplingPlan,
    resampling: Resampling | None,
    representation: RepresentationOf | None,
    out: Path,
    accelerator: Accelerator,
) -> None:
    """Write the panel: a row for each image.

    Args:
        run: a run with a generator.
        generator: name of the generator's folder in a run that has several.
        paths: the images to complete.
        hole: where.
        plan: how each image's results are generated.
        resampling: how generated parts are fitted to known ones, where the generator is not one of tokens.
        representation: what they are conditioned on; None: the visible part, where the generator's condition is a
            representation.
        out: the picture to write.
        accelerator: the processes.

    Raises:
        UserError: a picture cannot be read, the encoder is missing, or the options do not fit the generator; or
            nothing is visible, or to be generated.
    """
    pipeline = Pipeline.from_pretrained(run.path, generator).to(accelerator.device, plan.precision)
    name, size = generator or pipeline.config.folder_name, pipeline.image_size
    pipeline.check_resampling(resampling)
    if pipeline.config.condition == "representation":
        representation = representation or "visible"
    elif representation is not None:
        raise UserError(f"{name} is not conditioned on representations: leave --representation out")
    pipeline.check(plan.options, generates_z=representation == "generated")
    images = [read_image(path) for path in paths]
    parts = [hole.apply(whole, size, str(path)) for whole, path in zip(images, paths, strict=True)]
    image, holes = (torch.stack(part) for part in zip(*parts, strict=True))
    if representation == "visible" and holes.flatten(1).all(1).any():
        raise UserError(
            "nothing of the image stays visible to take a representation of: use --representation original, which "
            "looks at what is hidden, or --representation generated"
        )
    original = torch.stack([square(picture, size) for picture in images])
    z = None
    if representation in ("visible", "original"):
        seen = original if representation == "original" else hide(image, holes)
        z = _represent(seen, pipeline)
    for path, picture in zip(paths, images, strict=True):
        height, width = picture.shape[1:]
        if (height, width) != (size, size):
            say(f"{path} is {width} x {height}: its middle square is resized to {size} x {size}")
    generated = touching(holes, pipeline.generator.data.shape[-2:])
    if not torch.equal(F.interpolate(generated[:, None].float(), (size, size))[:, 0] > 0, holes):
        say(
            f"the hole cuts cells of {pipeline.config.folder_name}, which are generated whole; pixels outside of the "
            f"hole stay as they are"
        )

    results = []
    for position in range(len(image)):
        row, count = slice(position, position + 1), plan.count
        completed = pipeline.inpaint(
            image[row].expand(count, -1, -1, -1),
            holes[row].expand(count, -1, -1),
            plan.options,
            z=None if z is None else z[row].expand(count, -1),
            resampling=resampling,
        )
        results.append(completed.images.cpu())
    panel = torch.cat([original[:, None], hide(image, holes)[:, None], torch.stack(results)], dim=1)
    captions = [text for path in paths for text in (path.name, "masked", *[""] * plan.count)]
    title = f"{run.path} · {name} · seed {plan.options.seed}"
    save_gallery(panel.flatten(0, 1), captions, title, out, columns=2 + plan.count)
    say(str(out))


def _represent(image: Tensor, pipeline: Pipeline) -> Tensor:
    """Return z `(B, D)` of images."""
    try:
        return pipeline.represent(image)
    except UserError as error:
        raise UserError(f"{error}; or use --representation generated") from None


def _touched(hole: Tensor, side: int) -> Tensor:
    """Bring a square hole to another side: booleans `(side, side)`, true where any part of a pixel is in the hole."""
    return F.adaptive_max_pool2d(hole[None].float(), side)[0] > 0


def read_image(path: Path) -> Tensor:
    """Read an image or a mask `(3, H, W)`, float32 in [0, 1].

    Raises:
        UserError: it cannot be read, or is a strip rather than an image.
    """
    picture = read_picture(path)
    height, width = picture.shape[1:]
    if max(height, width) > LONGEST * min(height, width):
        raise UserError(
            f"{path} is {width} x {height}, of which the middle square shows next to nothing: crop it to a side ratio "
            f"of at most {LONGEST}"
        )
    return picture / 255 if picture.dtype == torch.uint8 else picture
