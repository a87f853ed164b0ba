"""Let a generator of tokens (mage) complete images: inpaint, outpaint, uncrop, or paint them anew.

python tools/inpaint.py RUN --image cat.png dog.png --box 0.25 0.25 0.75 0.75      paint inside of a box
python tools/inpaint.py RUN --image cat.png --outside 0.25 0.25 0.75 0.75          paint all but a box
python tools/inpaint.py RUN --image cat.png --mask hole.png                        paint where the mask is white
python tools/inpaint.py RUN --image cat.png --uncrop 0.5                           shrink the image, paint around it
python tools/inpaint.py RUN --image cat.png                                        paint all from the representation
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcg import cli
from rcg.core.errors import UserError
from rcg.data.datasets.image_folder import decode
from rcg.data.images import resize
from rcg.diffusion.inpainting import box, hide, shrink
from rcg.distributed import launch as parallel
from rcg.encoding.workspace import run_representation
from rcg.pipeline import Pipeline
from rcg.visual.grids import save_gallery


def main() -> None:
    """Parse the command line and paint."""
    parser = cli.parser_for(__doc__ or "")
    parser.add_argument("run", type=Path, help="folder of a run with a generator of tokens")
    parser.add_argument("--image", type=Path, nargs="+", required=True, metavar="FILE", help="images to complete")
    where = parser.add_mutually_exclusive_group()
    edges = ("LEFT", "TOP", "RIGHT", "BOTTOM")
    where.add_argument("--box", type=float, nargs=4, metavar=edges, help="paint inside, edges as shares of the side")
    where.add_argument("--outside", type=float, nargs=4, metavar=edges, help="paint outside of such a box")
    where.add_argument("--mask", type=Path, metavar="FILE", help="paint where this picture is white")
    where.add_argument("--uncrop", type=float, metavar="SHARE", help="shrink to this share of the side, paint around")
    parser.add_argument(
        "--condition",
        choices=("image", "generated"),
        default="image",
        help="paint from the representation of the whole image, or from generated ones [image]",
    )
    parser.add_argument("--num", type=cli.positive, default=4, help="results for each image [4]")
    parser.add_argument("--seed", type=cli.natural, default=0, help="seed of the results [0]")
    parser.add_argument("--out", type=Path, help="the panel: original, masked, results [RUN/inpaint.png]")
    parser.add_argument("--generator", help="which of the run's generators, where there are several")
    parser.add_argument("--guidance", type=cli.scale, help="scale of classifier-free guidance [as configured]")
    parser.add_argument("--steps", type=cli.positive, help="network evaluations of the generator [as configured]")
    cli.add_precision(parser)
    parser.add_argument("--class", dest="label", type=cli.natural, help="the class, for models trained on classes")
    cli.main(parser, paint)


@torch.inference_mode()
def paint(arguments: argparse.Namespace) -> None:
    """Write the panel: a row for each image."""
    pipeline = Pipeline.from_run(arguments.run, arguments.generator).to(parallel.start().device, arguments.precision)
    generator: Any = pipeline.generator.config
    name = arguments.generator or generator.arm
    size = pipeline.parts["generator"].facts["image_size"]
    original = torch.stack([_square(path, size) for path in arguments.image])
    image, hole = original, _hole(arguments, size).expand(len(original), -1, -1)
    if arguments.uncrop is not None:
        image, hole = shrink(original, arguments.uncrop)
    z = _represent(original, arguments.run, name, pipeline) if arguments.condition == "image" else None
    painted = [
        pipeline.inpaint(
            row.expand(arguments.num, -1, -1, -1),
            gap.expand(arguments.num, -1, -1),
            arguments.seed,
            guidance=arguments.guidance,
            steps=arguments.steps,
            label=arguments.label,
            z=None if z is None else z[i : i + 1].expand(arguments.num, -1),
        ).images.cpu()
        for i, (row, gap) in enumerate(zip(image, hole, strict=True))
    ]
    shown = torch.cat([original[:, None], hide(image, hole)[:, None], torch.stack(painted)], dim=1)
    captions = [text for path in arguments.image for text in (path.name, "masked", *[""] * arguments.num)]
    out = arguments.out or arguments.run / "inpaint.png"
    title = f"{arguments.run} · {name} · seed {arguments.seed}"
    save_gallery(shown.flatten(0, 1), captions, title, out, columns=2 + arguments.num)
    print(out)


def _represent(image: Tensor, run: Path, name: str, pipeline: Pipeline) -> Tensor | None:
    """Return z `(B, D)` of images, None where the generator is told something else."""
    space = pipeline.generator.cond
    if space is None or space.vocab is not None:
        return None
    try:
        representation = run_representation(run, name, space)
    except UserError as error:
        raise UserError(f"{error}; or use --condition generated") from None
    z: Tensor = representation.to(pipeline.device)(image.to(pipeline.device))
    return z


def _hole(arguments: argparse.Namespace, size: int) -> Tensor:
    """Return where to paint, booleans `(size, size)`: everywhere, unless something else is asked for."""
    if arguments.box is not None:
        return box(size, *arguments.box)
    if arguments.outside is not None:
        return ~box(size, *arguments.outside)
    if arguments.mask is not None:
        return _square(arguments.mask, size).mean(0) > 0.5
    return torch.ones(size, size, dtype=torch.bool)


def _square(path: Path, size: int) -> Tensor:
    """Read the middle square `(3, size, size)` of a picture, in [0, 1]."""
    try:
        image = resize(decode(path), size)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a picture that can be read ({error})") from None
    top, left = ((side - size) // 2 for side in image.shape[1:])
    return image[:, top : top + size, left : left + size]


if __name__ == "__main__":
    main()
