"""List the encoders by name: width of the representation, input, size, license, and whether the weights are here.

python tools/list_encoders.py          all of them
python tools/list_encoders.py dinov2   those whose name contains a word
"""

import argparse

from rcg import cli
from rcg.core.errors import UserError
from rcg.core.registry import ENCODERS


def main() -> None:
    """Parse the command line and list."""
    parser = cli.parser_for(__doc__ or "")
    parser.add_argument("word", nargs="?", default="", help="part of a name")
    cli.main(parser, show)


def show(arguments: argparse.Namespace) -> None:
    """Print one line for each encoder."""
    catalogs = (ENCODERS.get(name).catalog() for name in ENCODERS.names())
    found = [entry for entries in catalogs for entry in entries if arguments.word in entry.name]
    if not found:
        raise UserError(f"no encoder has {arguments.word!r} in its name: try dino, mae, clip, or none to see them all")
    rows = [("encoder: {...}", "width", "input", "params", "license", "weights")]
    for entry in found:
        side = str(entry.side or "?")
        rows.append((entry.name, str(entry.width), side, f"{entry.millions} M", entry.license, entry.weights))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nany other network of timm: encoder.name=timm_model encoder.model=NAME (encoder.weights=FILE)")


if __name__ == "__main__":
    main()
