"""Convert a published checkpoint to ours, and back.

python tools/convert.py rdm rdm_mocov3vitb.pth runs/paper                -> runs/paper/rdm and runs/paper/encoder
python tools/convert.py rdm runs/paper rdm_mocov3vitb.pth --back
python tools/convert.py dit rcg_dit_xl2.pth runs/paper                   -> runs/paper/dit, for runs/paper/rdm
python tools/convert.py autoencoder vqgan_jax_strongaug.ckpt runs/paper  -> runs/paper/autoencoder
python tools/convert.py diffae last.ckpt runs/faces                      -> encoder, adm and rdm of runs/faces
"""

import argparse

from rcg import cli
from rcg.core.console import say
from rcg.core.errors import UserError
from rcg.core.registry import CONVERTERS


def main() -> None:
    """Parse the command line and convert."""
    parser = cli.parser_for(__doc__)
    parser.add_argument("kind", help=f"kind of the checkpoint: {', '.join(CONVERTERS.names())}")
    parser.add_argument("source", type=cli.path, help="the published file, or with --back the folder of a run")
    parser.add_argument("target", type=cli.path, help="the folder of a run, or with --back the file")
    parser.add_argument("--name", help="which autoencoder: kl, vq or vqgan [read off the file]")
    text = "attention heads of a generator whose size was not published [as the file says]"
    parser.add_argument("--heads", type=cli.count, help=text)
    text = "channels of a head, for adm and ldm [as the file says]"
    parser.add_argument("--head-width", type=cli.count, help=text)
    text = "those of the encoder that it carries [as published for its size]"
    parser.add_argument("--encoder-heads", type=cli.count, help=text)
    parser.add_argument("--back", action="store_true", help="ours -> the published format")
    cli.main(parser, convert)


def convert(arguments: argparse.Namespace) -> None:
    """Read one format and write the other; refuse to overwrite."""
    from rcg.encoding.run_folder import RunFolder

    converter = cli.create(CONVERTERS.get(arguments.kind), arguments)
    if arguments.back:
        if arguments.target.exists():
            raise UserError(f"{arguments.target} is there already: choose another name")
        cli.output_file(arguments.target)
        converter.write(RunFolder(arguments.source), arguments.target)
        say(str(arguments.target))
        return
    folder = arguments.target / arguments.kind
    if folder.exists():
        raise UserError(f"{folder} is there already: choose another folder")
    cli.output_folder(folder)
    for path in converter.read(arguments.source, RunFolder(arguments.target)):
        say(str(path))


if __name__ == "__main__":
    main()
