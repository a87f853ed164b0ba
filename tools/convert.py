"""Turn a published checkpoint into ours, and back.

python tools/convert.py rdm rdm_mocov3vitb.pth runs/paper          -> runs/paper/rdm and runs/paper/encoder
python tools/convert.py rdm runs/paper rdm_mocov3vitb.pth --back
python tools/convert.py dit rcg_dit_xl2.pth runs/paper             -> runs/paper/dit, told what runs/paper/rdm generates
python tools/convert.py vqgan vqgan_jax_strongaug.ckpt runs/paper  -> runs/paper/autoencoder
"""

import argparse
from pathlib import Path

from rcg import cli
from rcg.core.errors import UserError
from rcg.core.registry import CONVERTERS


def main() -> None:
    """Parse the command line and convert."""
    parser = cli.parser_for(__doc__ or "")
    parser.add_argument("kind", help=f"what the checkpoint holds: {', '.join(CONVERTERS.names())}")
    parser.add_argument("source", type=Path, help="the published file, or with --back the folder of a run")
    parser.add_argument("target", type=Path, help="the folder of a run, or with --back the file")
    parser.add_argument("--back", action="store_true", help="ours -> the published format")
    cli.main(parser, convert)


def convert(arguments: argparse.Namespace) -> None:
    """Read one format and write the other; nothing that is there is overwritten."""
    converter = CONVERTERS.get(arguments.kind)
    if arguments.back:
        if arguments.target.exists():
            raise UserError(f"{arguments.target} is there already: choose another name")
        converter.write(arguments.source, arguments.target)
        print(arguments.target)
        return
    there = arguments.target / getattr(converter, "part", arguments.kind)
    if there.exists():
        raise UserError(f"{there} is there already: choose another folder")
    for path in converter.read(arguments.source, arguments.target):
        print(path)


if __name__ == "__main__":
    main()
