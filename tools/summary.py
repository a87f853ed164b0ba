"""Print a short table about a run: the quality of its parts, and their cost; draw their curves.

python tools/summary.py runs/digits
"""

import argparse

from rcg import cli


def main() -> None:
    """Parse the command line and print the table."""
    parser = cli.parser_for(__doc__)
    parser.add_argument("run", type=cli.run_folder, help="folder of a run")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    from rcg.encoding.run_folder import RunFolder
    from rcg.evaluation.run_page import summarize

    summarize(RunFolder(arguments.run))


if __name__ == "__main__":
    main()
