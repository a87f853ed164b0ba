"""Find directions in the space of representations along which one property of images changes, for tools/edit.py.

python tools/attributes.py RUN                                            a direction for each class of its own images
python tools/attributes.py RUN --images photos/                           for each folder of photos/
python tools/attributes.py RUN --images photos/ --table attributes.csv    for each column of a table
python tools/attributes.py RUN --with smiling/ --without serious/ --name smile    from two folders of examples
python tools/attributes.py RUN --images photos/ --components 8            without labels: what varies most
python tools/attributes.py RUN --images photos/ --features 64             without labels: what few images have
"""

import argparse

from rcg import cli
from rcg.core.errors import UserError


def main() -> None:
    """Parse the command line and find directions."""
    parser = cli.parser_for(__doc__)
    cli.add_run(parser)
    text = "folder of pictures [the images that RUN was trained on]"
    parser.add_argument("--images", type=cli.path, metavar="FOLDER", help=text)
    text = "CSV or JSON file of attributes: names of pictures, and 0, 1 or other numbers"
    parser.add_argument("--table", type=cli.path, metavar="FILE", help=text)
    parser.add_argument("--attributes", nargs="+", metavar="NAME", help="attributes of the table, or classes [all]")
    text = "number of principal directions of the pictures' representations"
    parser.add_argument("--components", type=cli.whole(1, 1000), metavar="NUM", help=text)
    text = "number of features of a sparse autoencoder of the pictures' representations"
    parser.add_argument("--features", type=cli.whole(1, 10_000), metavar="NUM", help=text)
    parser.add_argument("--active", type=cli.whole(1, 1000), default=4, help="features of one picture, at most [4]")
    cli.add(parser, "--seed")
    parser.add_argument("--with", dest="positive", type=cli.path, metavar="FOLDER", help="pictures with a property")
    parser.add_argument("--without", dest="negative", type=cli.path, metavar="FOLDER", help="pictures without it")
    parser.add_argument("--name", default="attribute", help="name of that property [attribute]")
    cli.add(parser, "--generator", "--precision")
    parser.add_argument("--out", type=cli.path, help="folder of the directions, one file each [RUN/attributes]")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Write NAME.safetensors for each direction, and print how well it is known."""
    _check(arguments)
    from rcg.core.console import say
    from rcg.distributed.launch import launch
    from rcg.editing import attributes
    from rcg.editing.directions import principal_directions
    from rcg.editing.encoded import encode_folder, encode_training_images
    from rcg.editing.sparse_autoencoder import find_features

    out = cli.output_folder(arguments.out or cli.results_of(arguments.run).attributes)
    table = None if arguments.table is None else attributes.read_table(arguments.table)
    pipeline = cli.open_pipeline(arguments)
    space = pipeline.representation.space
    if arguments.positive is not None:
        examples = (arguments.positive, arguments.negative)
        attributes.save([attributes.from_examples(pipeline, arguments.name, *examples)], out)
        return
    if arguments.images is None:
        images = encode_training_images(pipeline, launch())
    else:
        images = encode_folder(pipeline, arguments.images, None if table is None else table.rows)
    if table is not None:
        attributes.save(attributes.from_table(images, table, space, arguments.attributes), out)
    elif arguments.components is not None:
        attributes.save(principal_directions(images.z, arguments.components, space), out)
    elif arguments.features is not None:
        features = find_features(images.z, arguments.features, arguments.active, arguments.seed)
        attributes.save(attributes.from_features(features, space), out)
        attributes.show_features(images, features, out / "features.png")
        say(f"{out / 'features.png'}: {features.summary}")
    else:
        attributes.save(attributes.from_classes(images, space, arguments.attributes), out)


def _check(arguments: argparse.Namespace) -> None:
    """Raise `UserError` unless the arguments name one way to find directions."""
    ways = ("table", "components", "features", "positive")
    if sum(getattr(arguments, way) is not None for way in ways) > 1:
        raise UserError("--table, --components, --features and --with find directions each: give one of them, or none")
    if (arguments.positive is None) != (arguments.negative is None):
        raise UserError("--with and --without are the two sides of a property: give both")
    if arguments.positive is not None and arguments.images is not None:
        raise UserError("--with and --without give the pictures: leave --images out")
    if arguments.attributes is not None and (arguments.components or arguments.features or arguments.positive):
        raise UserError("--attributes chooses columns of --table, or classes: leave it out")


if __name__ == "__main__":
    main()
