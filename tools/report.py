"""Write one self-contained HTML page about a run: samples, scores, curves, neighbors, cost, configuration.

python tools/report.py runs/digits [--out FILE]
"""

import argparse

from rcg import cli


def main() -> None:
    """Parse the command line and write the page."""
    parser = cli.parser_for(__doc__)
    parser.add_argument("run", type=cli.run_folder, help="folder of a run")
    parser.add_argument("--out", type=cli.path, help="file of the page [RUN/report.html]")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Write the page and say where it is."""
    from rcg.encoding.run_folder import RunFolder
    from rcg.evaluation.run_page import write_page

    folder = RunFolder(arguments.run)
    write_page(folder, cli.output_file(arguments.out or folder.page))


if __name__ == "__main__":
    main()
