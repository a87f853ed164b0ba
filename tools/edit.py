"""Edit images: change what they mean, and keep the rest.

python tools/edit.py RUN --images cat.png --attribute RUN/attributes/smile.safetensors --strength -0.3 0 0.3
python tools/edit.py RUN --images cat.png --attribute smile.safetensors --keep age.safetensors
python tools/edit.py RUN --images cats/ --attribute smile.safetensors --in h      move h, and leave z (Asyrp)
"""

import argparse

from rcg import cli
from rcg.core.errors import UserError


def main() -> None:
    """Parse the command line and edit."""
    parser = cli.parser_for(__doc__)
    cli.add_run(parser)
    parser.add_argument("--images", type=cli.path, nargs="+", required=True, metavar="PATH", help="pictures or folders")
    text = "file of tools/attributes.py: the property to change"
    parser.add_argument("--attribute", type=cli.path, required=True, metavar="FILE", help=text)
    text = "how far: 0 is the reconstruction, 0.3 a visible edit [-0.3 0 0.3]"
    parser.add_argument("--strength", type=cli.number(-100, 100), nargs="+", default=[-0.3, 0.0, 0.3], help=text)
    text = "files of properties that stay as they are: the part of the direction that changes them is left out"
    parser.add_argument("--keep", type=cli.path, nargs="+", default=[], metavar="FILE", help=text)
    text = "files of properties whose change is measured too, as that of those that are kept"
    parser.add_argument("--watch", type=cli.path, nargs="+", default=[], metavar="FILE", help=text)
    text = "own: the noise that leads to the image, which holds what its representation does not; or random [own]"
    parser.add_argument("--noise", choices=("own", "random"), default="own", help=text)
    parser.add_argument("--steps", type=cli.count, default=100, help="network evaluations of the generator [100]")
    text = "z: the representation is moved; h: what comes out of the middle of the generator's network is [z]"
    parser.add_argument("--in", dest="space", choices=("z", "h"), default="z", help=text)
    text = "in h: block of a dit whose output is moved, from 1 on [the middle one]"
    parser.add_argument("--block", type=cli.count, help=text)
    text = "in h: share of the way to noise where editing ends [found from perceptual distances of the images]"
    parser.add_argument("--t-edit", type=cli.number(0, 1), metavar="SHARE", help=text)
    text = "in h: share of the way to noise below which fresh noise makes images sharper; 0: nowhere [found]"
    parser.add_argument("--t-boost", type=cli.number(0, 1), metavar="SHARE", help=text)
    cli.add(parser, "--seed", "--generator", "--precision")
    parser.add_argument("--out", type=cli.path, help="folder of the panel and the metrics [RUN/edits]")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Write a panel over strengths, and metrics."""
    given = [name for name in ("block", "t_edit", "t_boost") if getattr(arguments, name) is not None]
    if given and arguments.space == "z":
        raise UserError(f"--{given[0].replace('_', '-')} is about edits in h: add --in h, or leave it out")
    if arguments.noise == "random" and arguments.space == "h":
        raise UserError("an edit in h starts from the image's own noise: leave out --noise random, or --in h")
    import torch

    from rcg.editing.directions import Direction
    from rcg.editing.edit import EditOptions, edit
    from rcg.editing.images import read_images
    from rcg.editing.phases import choose_phases
    from rcg.editing.shifts import HSpaceEditor, along

    out = cli.output_folder(arguments.out or cli.results_of(arguments.run).edits)
    pipeline = cli.open_pipeline(arguments)
    space = pipeline.representation.space
    kept, watched = ([Direction.load(path, space) for path in paths] for paths in (arguments.keep, arguments.watch))
    direction = Direction.load(arguments.attribute, space).without(kept)
    images = read_images(arguments.images, pipeline.image_size)
    own_noise = arguments.noise == "own"
    options = EditOptions(arguments.strength, arguments.steps, arguments.seed, own_noise=own_noise)
    h_space = None
    if arguments.space == "h":
        shift_of = along(pipeline, direction, arguments.block)
        originals = torch.stack([image.pixels for image in images])
        phases = choose_phases(pipeline, originals, arguments.t_edit, arguments.t_boost)
        h_space = HSpaceEditor(pipeline, shift_of, phases, arguments.block, arguments.steps, arguments.seed)
    edit(pipeline, images, direction, [*kept, *watched], options, out, h_space)


if __name__ == "__main__":
    main()
