"""Edit images: change what they mean, and keep the rest; or redraw them.

python tools/edit.py RUN --images cat.png --attribute RUN/attributes/smile.safetensors --strength -0.3 0 0.3
python tools/edit.py RUN --images cat.png --attribute smile.safetensors --keep age.safetensors
python tools/edit.py RUN --images cats/ --attribute smile.safetensors --in h      move h, and leave z (Asyrp)
python tools/edit.py RUN --images cat.png --redraw 0.2 0.4 0.6      part of the way to noise and back (SDEdit)
python tools/edit.py RUN --images cat.png --redraw 0.6 --like dog.png       as what another image means
"""

import argparse

from rcg import cli
from rcg.core.errors import UserError


def main() -> None:
    """Parse the command line and edit."""
    parser = cli.parser_for(__doc__)
    cli.add_run(parser)
    parser.add_argument("--images", type=cli.path, nargs="+", required=True, metavar="PATH", help="pictures or folders")
    text = "file of tools/attributes.py, or of tools/train_shift.py: the property to change"
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--attribute", type=cli.path, metavar="FILE", help=text)
    text = "generate images again from this share of the way to noise: 0 keeps all of them, 1 nothing"
    kind.add_argument("--redraw", type=cli.number(0, 1), nargs="+", metavar="SHARE", help=text)
    text = "redraw with the representation of this picture [each image's own]"
    parser.add_argument("--like", type=cli.path, metavar="FILE", help=text)
    text = "how far: 0 is the reconstruction, 0.3 a visible edit [-0.3 0 0.3]"
    parser.add_argument("--strength", type=cli.number(-100, 100), nargs="+", help=text)
    text = "files of properties that stay as they are: the part of the direction that changes them is left out"
    parser.add_argument("--keep", type=cli.path, nargs="+", default=[], metavar="FILE", help=text)
    text = "files of properties whose change is measured too, as that of those that are kept"
    parser.add_argument("--watch", type=cli.path, nargs="+", default=[], metavar="FILE", help=text)
    text = "own: the noise that leads to the image, which holds what its representation does not; or random [own]"
    parser.add_argument("--noise", choices=("own", "random"), help=text)
    parser.add_argument("--steps", type=cli.count, default=100, help="network evaluations of the generator [100]")
    text = "what is moved: the representation z, or the inner layer h of the generator [z; h by a trained shift]"
    parser.add_argument("--in", dest="space", choices=("z", "h"), help=text)
    cli.add_h_space(parser, "found from the images, or as trained", "in h: ")
    cli.add_guidance_of_codes(parser, "1; of --redraw as configured")
    cli.add(parser, "--seed", "--generator", "--precision")
    parser.add_argument("--out", type=cli.path, help="folder of the panel and the metrics [RUN/edits]")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Write a panel over strengths, and metrics."""
    if arguments.redraw is not None:
        _redraw(arguments)
        return
    if arguments.like is not None:
        raise UserError("--like is about redrawing: add --redraw 0.6, or leave it out")
    import torch

    from rcg.editing.directions import Direction
    from rcg.editing.edit import EditOptions, edit
    from rcg.editing.images import read_images
    from rcg.editing.phases import choose_phases
    from rcg.editing.shifts import HSpaceEditor, ShiftOf, along
    from rcg.editing.trained_shift import TrainedShift, is_shift

    is_trained = is_shift(arguments.attribute)
    _check(arguments, is_trained)
    out = cli.output_folder(arguments.out or cli.results_of(arguments.run).edits)
    pipeline = cli.open_pipeline(arguments)
    space = pipeline.representation.space
    kept, watched = ([Direction.load(path, space) for path in paths] for paths in (arguments.keep, arguments.watch))
    images = read_images(arguments.images, pipeline.image_size)
    strengths, own_noise = arguments.strength or EditOptions.strengths, arguments.noise != "random"
    options = cli.create(EditOptions, arguments, strengths=strengths, own_noise=own_noise)
    block, t_edit, t_boost = arguments.block, arguments.t_edit, arguments.t_boost
    shift_of: ShiftOf | None = None
    if is_trained:
        shift_of = shift = TrainedShift.load(arguments.attribute, pipeline)
        direction, block = shift.direction, shift.config.block
        t_edit = shift.phases.edit if t_edit is None else t_edit
        t_boost = min(shift.phases.boost, t_edit) if t_boost is None else t_boost
    else:
        direction = Direction.load(arguments.attribute, space).without(kept)
        if arguments.space == "h":
            shift_of = along(pipeline, direction, block)
    h_space = None
    if shift_of is not None:
        phases = choose_phases(pipeline, torch.stack([image.pixels for image in images]), t_edit, t_boost)
        h_space = HSpaceEditor(pipeline, shift_of, phases, block, arguments.steps, arguments.seed)
    edit(pipeline, images, direction, [*kept, *watched], options, out, h_space)


def _redraw(arguments: argparse.Namespace) -> None:
    """Redraw images, and refuse options that are about attributes."""
    for name in ("strength", "keep", "watch", "noise", "space", "block", "t_edit", "t_boost"):
        if getattr(arguments, name) not in (None, []):
            option = "in" if name == "space" else name.replace("_", "-")
            raise UserError(f"--{option} is about edits by an --attribute: leave it out, or leave --redraw out")
    from rcg.editing.images import ImageFile, read_images
    from rcg.editing.redraw import redraw
    from rcg.pipeline import SamplingOptions

    out = cli.output_folder(arguments.out or cli.results_of(arguments.run).edits)
    pipeline = cli.open_pipeline(arguments)
    images, size, file = read_images(arguments.images, pipeline.image_size), pipeline.image_size, arguments.like
    like = None if file is None else ImageFile(file.name, file).read(size)
    redraw(pipeline, images, arguments.redraw, cli.create(SamplingOptions, arguments), out, like)


def _check(arguments: argparse.Namespace, is_trained: bool) -> None:
    """Refuse options that are not about the edit that is asked for."""
    if is_trained:
        if arguments.space == "z":
            raise UserError(f"{arguments.attribute} is a trained shift of h: leave --in z out")
        if arguments.block is not None or arguments.keep:
            raise UserError(f"{arguments.attribute} moves what it was trained to move: leave --block and --keep out")
    is_in_h = is_trained or arguments.space == "h"
    given = [name for name in ("block", "t_edit", "t_boost") if getattr(arguments, name) is not None]
    if given and not is_in_h:
        raise UserError(f"--{given[0].replace('_', '-')} is about edits in h: add --in h, or leave it out")
    if is_in_h and "guidance" in arguments:
        raise UserError("an edit in h is decoded without guidance: leave --guidance out, or --in h")
    if is_in_h and arguments.noise == "random":
        raise UserError("an edit in h starts from the image's own noise: leave out --noise random, or --in h")


if __name__ == "__main__":
    main()
