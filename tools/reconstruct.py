"""Reconstruct images from their codes: what a run keeps of an image, and what its encoder alone keeps.

python tools/reconstruct.py RUN --images photos/ --num 64
"""

import argparse

from rcg import cli


def main() -> None:
    """Parse the command line and reconstruct."""
    parser = cli.parser_for(__doc__)
    cli.add_run(parser)
    text = "pictures, or folders of pictures"
    parser.add_argument("--images", type=cli.path, nargs="+", required=True, metavar="PATH", help=text)
    cli.add_number(parser, 64, "number of images at most")
    text = "numbers of steps to compare [10 20 50 100]"
    parser.add_argument("--steps", type=cli.count, nargs="+", default=[10, 20, 50, 100], help=text)
    parser.add_argument("--seeds", type=cli.whole(1, 64), default=8, help="random noises for each image [8]")
    cli.add_guidance_of_codes(parser)
    cli.add(parser, "--seed", "--generator", "--precision")
    parser.add_argument("--out", type=cli.path, help="folder of the table and the picture [RUN/reconstruction]")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Write reconstruction.md, .json and .png."""
    from rcg.editing.images import read_images
    from rcg.editing.reconstruct import ReconstructionOptions, reconstruct

    out = cli.output_folder(arguments.out or cli.results_of(arguments.run).reconstruction)
    pipeline = cli.open_pipeline(arguments)
    images = read_images(arguments.images, pipeline.image_size, arguments.count)
    reconstruct(pipeline, images, cli.create(ReconstructionOptions, arguments), out)


if __name__ == "__main__":
    main()
