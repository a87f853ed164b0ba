"""Let a generator complete images: inpaint, outpaint, uncrop, or generate them anew.

python tools/inpaint.py RUN --image cat.png dog.png --box 0.25 0.25 0.75 0.75      generate inside of a box
python tools/inpaint.py RUN --image cat.png --outside 0.25 0.25 0.75 0.75          generate all but a box
python tools/inpaint.py RUN --image cat.png --mask hole.png                        generate where the mask is white
python tools/inpaint.py RUN --image cat.png --uncrop 0.5                           shrink the image, generate around it
python tools/inpaint.py RUN --image cat.png --representation original              generate all from its representation
"""

import argparse

from rcg import cli


def main() -> None:
    """Parse the command line and complete images."""
    parser = cli.parser_for(__doc__)
    cli.add_run(parser)
    parser.add_argument("--image", type=cli.path, nargs="+", required=True, metavar="FILE", help="images to complete")
    hole = parser.add_mutually_exclusive_group()
    edges = ("LEFT", "TOP", "RIGHT", "BOTTOM")
    hole.add_argument(
        "--box", type=cli.number(0, 1), nargs=4, metavar=edges, help="generate inside, edges as shares of the side"
    )
    hole.add_argument("--outside", type=cli.number(0, 1), nargs=4, metavar=edges, help="generate outside of such a box")
    hole.add_argument("--mask", type=cli.path, metavar="FILE", help="generate where this picture is white")
    hole.add_argument(
        "--uncrop", type=cli.number(0.001, 1), metavar="SHARE", help="shrink to this share of the side, generate around"
    )
    text = (
        "condition on the representation of the visible part, on generated ones, or on that of the original, which "
        "knows what is hidden [visible]"
    )
    parser.add_argument("--representation", choices=("visible", "generated", "original"), help=text)
    parser.add_argument(
        "--resamplings",
        dest="times",
        metavar="NUM",
        type=cli.whole(1, 1000),
        default=argparse.SUPPRESS,
        help="how often each stretch of steps is taken, for what is generated to fit what is known; 1: once; the time "
        "it takes is multiplied by this; not for tokens [5]",
    )
    parser.add_argument(
        "--jump-length",
        metavar="NUM",
        type=cli.count,
        default=argparse.SUPPRESS,
        help="steps of such a stretch [a 25th of all]",
    )
    cli.add_number(parser, 4, "number of results for each image", most=1000)
    parser.add_argument("--out", type=cli.path, help="file of the panel: original, masked, results [RUN/inpaint.png]")
    cli.add(
        parser, "--seed", "--generator", "--guidance", "--allow-untrained-null", "--steps", "--precision", "--class"
    )
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Write the panel: a row for each image."""
    from rcg.core.hub import locate
    from rcg.diffusion.repaint import Resampling
    from rcg.distributed.launch import launch
    from rcg.encoding.run_folder import RunFolder
    from rcg.evaluation.inpainting_panel import Hole, write_panel

    resampling = cli.create(Resampling, arguments) if {"times", "jump_length"} & vars(arguments).keys() else None
    folder, hole, plan = RunFolder(locate(arguments.run)), cli.create(Hole, arguments), cli.sampling_plan(arguments)
    out = cli.output_file(arguments.out or cli.results_of(arguments.run).inpainting)
    images, representation = arguments.image, arguments.representation
    write_panel(folder, arguments.generator, images, hole, plan, resampling, representation, out, launch())


if __name__ == "__main__":
    main()
