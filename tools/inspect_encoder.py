"""Write a one-page report about an experiment's encoder: neighbors, probe, spectrum, map, speed, license.

python tools/inspect_encoder.py configs/cifar10.yaml [section.key=value ...] [--num N] [--out DIR]
"""

import argparse
from pathlib import Path

from rcg import cli, config
from rcg.evaluation.encoder_report import inspect


def main() -> None:
    """Parse the command line and inspect."""
    parser = cli.parser_for(__doc__ or "", epilog=config.describe)
    cli.add_experiment(parser)
    parser.add_argument("--num", type=cli.positive, default=5000, help="most images of each split [5000]")
    parser.add_argument("--out", type=Path, help="folder for report.md and report.png [RUN/encoder-report]")
    cli.main(parser, report)


def report(arguments: argparse.Namespace) -> None:
    """Inspect the encoder and print the report."""
    experiment = config.load(arguments.config, arguments.overrides)
    out = arguments.out or experiment.run / "encoder-report"
    inspect(experiment, out, arguments.num)
    print((out / "report.md").read_text())
    print(f"look at {out / 'report.png'}")


if __name__ == "__main__":
    main()
