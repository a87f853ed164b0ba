"""Write a one-page report about an experiment's encoder: neighbors, probe, spectrum, map, speed, license.

python tools/inspect_encoder.py configs/cifar10.yaml [section.key=value ...] [--num N] [--out DIR]
"""

import argparse

from rcg import cli


def main() -> None:
    """Parse the command line and inspect."""
    parser = cli.experiment_parser(__doc__)
    cli.add_number(parser, 5000, "largest number of images of each split")
    parser.add_argument("--out", type=cli.path, help="folder for report.md and report.png [RUN/encoder-report]")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Inspect the encoder and print the report."""
    work = cli.open_workspace(arguments)
    from rcg.evaluation.encoder_report import inspect

    inspect(work, cli.output_folder(arguments.out or work.run.encoder_report), arguments.count)


if __name__ == "__main__":
    main()
