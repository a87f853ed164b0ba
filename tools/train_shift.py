"""Train a shift of h for one property, for tools/edit.py: a small network of the generator's inner layer (Asyrp).

python tools/train_shift.py RUN --images photos/ --attribute RUN/attributes/smile.safetensors
python tools/train_shift.py RUN --images photos/ --attribute smile.safetensors --encoder C.yaml --with A/ --without B/
"""

import argparse

from rcg import cli
from rcg.core.errors import UserError


def main() -> None:
    """Parse the command line and train."""
    parser = cli.parser_for(__doc__)
    cli.add_run(parser)
    text = "pictures, or folders of pictures, to train on"
    parser.add_argument("--images", type=cli.path, nargs="+", required=True, metavar="PATH", help=text)
    cli.add_number(parser, 100, "number of images at most")
    text = "file of tools/attributes.py: the property that shall change"
    parser.add_argument("--attribute", type=cli.path, required=True, metavar="FILE", help=text)
    text = "another encoder that judges it, CLIP for example: a YAML file with its section, or YAML [the run's own]"
    parser.add_argument("--encoder", help=text)
    text = "for --encoder: pictures with the property"
    parser.add_argument("--with", dest="positive", type=cli.path, metavar="FOLDER", help=text)
    text = "for --encoder: pictures without it"
    parser.add_argument("--without", dest="negative", type=cli.path, metavar="FOLDER", help=text)
    parser.add_argument("--train-steps", dest="steps", type=cli.count, default=100, help="batches [100]")
    parser.add_argument("--batch-size", type=cli.whole(1, 1024), default=16, help="images of a batch [16]")
    parser.add_argument("--lr", type=cli.number(1e-8, 10), default=1e-3, help="learning rate [0.001]")
    text = "weight of staying like the estimates that are not edited, in L1 [3]"
    parser.add_argument("--keep", type=cli.number(0, 1000), default=3.0, help=text)
    parser.add_argument("--width", type=cli.whole(4, 65536), help="channels of the small network [those of h]")
    cli.add_h_space(parser, "found from the images")
    cli.add(parser, "--seed", "--generator", "--precision")
    parser.add_argument("--out", type=cli.path, help="folder of the file NAME.shift.safetensors [RUN/attributes]")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Write NAME.shift.safetensors, and print how well the shift leads along the direction."""
    other = (arguments.encoder, arguments.positive, arguments.negative)
    if any(other) and not all(other):
        raise UserError("another judge needs all of --encoder, --with and --without; the run's own none of them")
    import torch

    from rcg.core.console import say
    from rcg.distributed.launch import launch
    from rcg.editing.directions import Direction
    from rcg.editing.images import read_images
    from rcg.editing.phases import choose_phases
    from rcg.editing.shift_training import ShiftOptions, other_judge, own_judge, train_shift

    out = cli.output_folder(arguments.out or cli.results_of(arguments.run).attributes)
    pipeline = cli.open_pipeline(arguments)
    pipeline.generator.network.bottleneck(arguments.block)
    direction = Direction.load(arguments.attribute, pipeline.representation.space)
    images = read_images(arguments.images, pipeline.image_size, arguments.count)
    judge = own_judge(pipeline, direction)
    if arguments.encoder is not None:
        examples = [read_images([folder], pipeline.image_size) for folder in (arguments.positive, arguments.negative)]
        judge = other_judge(arguments.encoder, pipeline, *examples)
    originals = torch.stack([image.pixels for image in images])
    phases = choose_phases(pipeline, originals, arguments.t_edit, arguments.t_boost)
    options = cli.create(ShiftOptions, arguments)
    shift = train_shift(pipeline, images, direction, judge, phases, options, launch())
    path = out / f"{direction.file_name}.shift.safetensors"
    shift.save(path, pipeline)
    say(f"{path}: {shift.quality}. Next: tools/edit.py --attribute {path}")


if __name__ == "__main__":
    main()
