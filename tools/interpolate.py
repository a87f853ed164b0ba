"""Generate the images between images: their representations and their noise are interpolated.

python tools/interpolate.py RUN --images cat.png dog.png
python tools/interpolate.py RUN --images a.png b.png c.png --frames 24 --curve slerp
"""

import argparse

from rcg import cli


def main() -> None:
    """Parse the command line and interpolate."""
    parser = cli.parser_for(__doc__)
    cli.add_run(parser)
    parser.add_argument(
        "--images", type=cli.path, nargs="+", required=True, metavar="FILE", help="two pictures or more"
    )
    parser.add_argument("--frames", type=cli.whole(1, 1000), default=8, help="steps from one picture to the next [8]")
    text = "how representations are interpolated: on lines or great circles [lerp]"
    parser.add_argument("--curve", choices=("lerp", "slerp"), default="lerp", help=text)
    parser.add_argument("--steps", type=cli.count, default=100, help="network evaluations of the generator [100]")
    cli.add_guidance_of_codes(parser)
    cli.add(parser, "--seed", "--generator", "--precision")
    parser.add_argument(
        "--out", type=cli.path, help="folder of the strip, the animation and metrics [RUN/interpolation]"
    )
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Write interpolation.png, .webp and .json."""
    from rcg.editing.images import read_images
    from rcg.editing.interpolate import InterpolationOptions, interpolate

    out = cli.output_folder(arguments.out or cli.results_of(arguments.run).interpolation)
    pipeline = cli.open_pipeline(arguments)
    interpolate(
        pipeline, read_images(arguments.images, pipeline.image_size), cli.create(InterpolationOptions, arguments), out
    )


if __name__ == "__main__":
    main()
