"""Look at a folder of pictures, measure this machine for a minute, and write an experiment that fits into some minutes.

python tools/plan.py photos --minutes 60 [--image-size 64] [--out plan.yaml]
"""

import argparse
from pathlib import Path

from rcg import cli
from rcg.core.console import say
from rcg.core.errors import UserError


def main() -> None:
    """Parse the command line and write the plan."""
    parser = cli.parser_for(__doc__)
    parser.add_argument("folder", type=cli.path, help="folder of pictures; its sub-folders may be classes")
    parser.add_argument("--minutes", type=cli.number(0.1, 1e6), required=True, help="of all commands together")
    text = "side of the images in pixels [64, or that of smaller pictures]"
    parser.add_argument("--image-size", type=cli.whole(16, 1024), help=text)
    parser.add_argument("--out", type=cli.path, default=Path("plan.yaml"), help="the file to write [plan.yaml]")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Look, measure, and write the file."""
    out = cli.output_file(arguments.out)
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {out} is to be an experiment: give it the ending .yaml")
    if out.exists() and not arguments.overwrite:
        raise UserError(f"{out} is there: choose another --out, or replace it with --overwrite")
    from rcg.core.checkpoint import atomic
    from rcg.training.planning.folder import look_at
    from rcg.training.planning.plan import check_size, image_side, make_plan
    from rcg.training.planning.writing import as_yaml, describe

    if arguments.image_size is not None:
        check_size(arguments.image_size)
    facts = look_at(arguments.folder)
    size = arguments.image_size or image_side(facts.side)
    from rcg.training.planning.measure import measure

    say(f"{arguments.folder}: {facts.images} pictures; measuring this machine at {size} px for about a minute")
    speeds = measure(facts, size)
    plan = make_plan(facts, speeds, arguments.minutes, size, str(out))
    with atomic(out) as temporary:
        temporary.write_text(as_yaml(plan, facts, speeds, arguments.minutes), encoding="utf-8")
    for line in describe(plan, facts, speeds, arguments.minutes):
        say(line)
    say(f"{out} holds the plan. Next: {plan.stages[0].command}")


if __name__ == "__main__":
    main()
