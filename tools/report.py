"""Write one self-contained HTML page about a run: samples, figures, curves, neighbors, cost, configuration.

python tools/report.py runs/digits [--out FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rcg import cli
from rcg.evaluation.run_page import write_page


def main() -> None:
    """Parse the command line and write the page."""
    parser = cli.parser_for(__doc__ or "")
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, help="the page [RUN/report.html]")
    cli.main(parser, report)


def report(arguments: argparse.Namespace) -> None:
    """Write the page and say where it is."""
    path = arguments.out or arguments.run / "report.html"
    write_page(arguments.run, path)
    print(path)


if __name__ == "__main__":
    main()
