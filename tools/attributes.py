"""Find directions in the space of representations along which one property of images changes, for tools/edit.py.

python tools/attributes.py RUN --images photos/ --table attributes.csv            a direction for each column
python tools/attributes.py RUN --with smiling/ --without serious/ --name smile    from two folders of examples
python tools/attributes.py RUN --images photos/ --components 8                    without labels: what varies most
"""

import argparse

from rcg import cli
from rcg.core.errors import UserError


def main() -> None:
    """Parse the command line and find directions."""
    parser = cli.parser_for(__doc__)
    cli.add_run(parser)
    parser.add_argument("--images", type=cli.path, metavar="FOLDER", help="folder of pictures")
    text = "CSV or JSON file of attributes: names of pictures, and 0, 1 or other numbers"
    parser.add_argument("--table", type=cli.path, metavar="FILE", help=text)
    parser.add_argument("--attributes", nargs="+", metavar="NAME", help="attributes of the table [all]")
    parser.add_argument("--with", dest="positive", type=cli.path, metavar="FOLDER", help="pictures with the property")
    parser.add_argument("--without", dest="negative", type=cli.path, metavar="FOLDER", help="pictures without it")
    parser.add_argument("--name", default="attribute", help="name of that property [attribute]")
    text = "number of principal directions of the pictures' representations"
    parser.add_argument("--components", type=cli.whole(1, 1000), help=text)
    cli.add(parser, "--generator", "--precision")
    parser.add_argument("--out", type=cli.path, help="folder of the directions, one file each [RUN/attributes]")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Write NAME.safetensors for each direction, and print how well it is known."""
    by_examples = arguments.positive is not None and arguments.negative is not None
    by_images = arguments.images is not None and (arguments.table is not None) != (arguments.components is not None)
    if by_examples == by_images:
        raise UserError("give --images with --table or --components, or --with and --without")
    from rcg.editing import attributes

    out = cli.output_folder(arguments.out or cli.results_of(arguments.run).attributes)
    pipeline = cli.open_pipeline(arguments)
    if by_examples:
        found = [attributes.from_examples(pipeline, arguments.name, arguments.positive, arguments.negative)]
    elif arguments.table is not None:
        found = attributes.from_table(pipeline, arguments.images, arguments.table, arguments.attributes)
    else:
        found = attributes.from_variance(pipeline, arguments.images, arguments.components)
    attributes.save(found, out)


if __name__ == "__main__":
    main()
