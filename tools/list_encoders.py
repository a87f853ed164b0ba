"""List the encoders by name: width of the representation, input, size, license, and where the weights are.

python tools/list_encoders.py          all of them
python tools/list_encoders.py dinov2   those whose name contains a word
"""

import argparse
from collections.abc import Iterator

from rcg import cli
from rcg.core.errors import UserError
from rcg.core.registry import ENCODERS

HEAD = ("encoder: {...}", "width", "input", "params", "license", "weights")


def main() -> None:
    """Parse the command line and list."""
    parser = cli.parser_for(__doc__ or "")
    parser.add_argument("word", nargs="?", default="", help="part of a name")
    cli.main(parser, show)


def show(arguments: argparse.Namespace) -> None:
    """Print one line per encoder."""
    rows = [row for name in ENCODERS.names() for row in _rows(name) if arguments.word in row[0]]
    if not rows:
        raise UserError(f"no encoder has {arguments.word!r} in its name: try dino, mae, clip, or none to see them all")
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    for row in (HEAD, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nany other network of timm: encoder.name=timm_model encoder.model=NAME (encoder.weights=FILE)")


def _rows(name: str) -> Iterator[tuple[str, ...]]:
    """Yield the catalog of an encoder, or its name alone if it has no catalog."""
    entries = list(ENCODERS.get(name).catalog())
    if not entries:
        yield (f"name: {name}", *[""] * (len(HEAD) - 1))
    for entry in entries:
        side = str(entry.side or "?")
        yield entry.name, str(entry.width), side, f"{entry.millions} M", entry.license, entry.weights


if __name__ == "__main__":
    main()
