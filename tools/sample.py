"""Generate images with a trained run: noise -> representation -> image.

python tools/sample.py runs/digits --num 64 --seed 0
accelerate launch tools/sample.py runs/imagenet --num 50000 --save-images --out samples
python tools/sample.py runs/photos --like cats/ --unlike dogs/      like some examples: 5 to 100 pictures are enough
"""

import argparse
from dataclasses import replace

from rcg import cli
from rcg.core.errors import UserError


def main() -> None:
    """Parse the command line and sample."""
    parser = cli.parser_for(__doc__)
    cli.add_run(parser)
    parser.add_argument("--out", type=cli.path, help="folder for gallery.png, samples.json and images [RUN/gallery]")
    cli.add_sampling(parser, num=64, most=10**9)  # they are streamed
    cli.add(parser, "--generator", "--guidance", "--weak", "--class", "--representations")
    text = "folder of example pictures: only representations like theirs are kept"
    parser.add_argument("--like", type=cli.path, metavar="FOLDER", help=text)
    text = "folder of pictures that lack what those have [any generated ones]"
    parser.add_argument("--unlike", type=cli.path, metavar="FOLDER", help=text)
    parser.add_argument("--save-images", action="store_true", help="also write one PNG per sample, named by its index")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Generate this process's share of the samples; the first process writes the gallery."""
    if arguments.like is None and arguments.unlike is not None:
        raise UserError("--unlike says what the examples of --like lack: give both")
    if arguments.like is not None and arguments.representations is not None:
        raise UserError("--like generates representations, --representations gives them: leave one out")
    from rcg.core.hub import locate
    from rcg.distributed.launch import launch
    from rcg.encoding.run_folder import RunFolder
    from rcg.evaluation.gallery import write_gallery
    from rcg.evaluation.samples import open_samples

    accelerator, plan, folder = launch(), cli.sampling_plan(arguments), RunFolder(locate(arguments.run))
    out = cli.output_folder(arguments.out or cli.results_of(arguments.run).gallery)
    samples = open_samples(folder, arguments.generator, plan, arguments.representations, accelerator.device)
    if arguments.like is None:
        write_gallery(samples, str(arguments.run), out, accelerator, arguments.save_images)
        return
    from rcg.editing.few_shot import open_examples

    examples = open_examples(samples.pipeline, arguments.like, arguments.unlike, plan.options)
    # What is about the RDM has been followed when the representations were generated.
    options = replace(plan.options, rdm_steps=None, label=None)
    samples = replace(samples, representations=examples, options=options)
    write_gallery(samples, str(arguments.run), out, accelerator, arguments.save_images)
    examples.say_rate()


if __name__ == "__main__":
    main()
