"""Edit images: change what they mean, and keep the rest.

python tools/edit.py RUN --images cat.png --attribute RUN/attributes/smile.safetensors --strength -0.3 0 0.3
python tools/edit.py RUN --images cat.png --attribute smile.safetensors --keep age.safetensors
"""

import argparse

from rcg import cli


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
    parser.add_argument("--steps", type=cli.count, default=100, help="network evaluations of the generator [100]")
    cli.add(parser, "--seed", "--generator", "--precision")
    parser.add_argument("--out", type=cli.path, help="folder of the panel and the metrics [RUN/edits]")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Write a panel over strengths, and metrics."""
    from rcg.editing.directions import Direction
    from rcg.editing.edit import EditOptions, edit
    from rcg.editing.images import read_images

    out = cli.output_folder(arguments.out or cli.results_of(arguments.run).edits)
    pipeline = cli.open_pipeline(arguments)
    space = pipeline.representation.space
    kept = [Direction.load(path, space) for path in arguments.keep]
    direction = Direction.load(arguments.attribute, space).without(kept)
    images = read_images(arguments.images, pipeline.image_size)
    options = EditOptions(arguments.strength, arguments.steps, arguments.seed)
    edit(pipeline, images, direction, kept, options, out)


if __name__ == "__main__":
    main()
