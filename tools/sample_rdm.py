"""Generate representations with a trained RDM and show the real images nearest to each, before any generator exists.

python tools/sample_rdm.py configs/digits.yaml [section.key=value ...] --num 1000 --out runs/digits/representations

With classes, a table says class by class how often a probe agrees with them.
"""

import argparse

from rcg import cli


def main() -> None:
    """Parse the command line and sample."""
    parser = cli.experiment_parser(__doc__)
    cli.add_number(parser, 1000, "number of representations")
    cli.add(parser, "--seed", "--rdm-steps", "--class", "--weak", "--allow-untrained-null")
    parser.add_argument("--out", type=cli.path, help="folder of the results [RUN/representations]")
    text = "scale of guidance, for an RDM with a condition [as configured]"
    parser.add_argument("--guidance", type=cli.guidance_scale, help=text)
    text = "strength of classifier guidance, for an RDM without classes [1]"
    parser.add_argument("--probe", dest="probe_scale", metavar="PROBE", type=cli.guidance_scale, help=text)
    text = "safetensors file of conditions, for an RDM that is conditioned on vectors"
    parser.add_argument("--vectors", type=cli.path, help=text)
    parser.add_argument("--batch-size", type=cli.batch_size, default=1000, help="samples generated at a time [1000]")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Write representations.safetensors, neighbors.png and, with classes, classes.md."""
    work = cli.open_workspace(arguments)
    from rcg.evaluation.rdm_samples import RDMSampling, sample_representations

    out = cli.output_folder(arguments.out or work.run.representations)
    sample_representations(work, out, cli.create(RDMSampling, arguments))


if __name__ == "__main__":
    main()
