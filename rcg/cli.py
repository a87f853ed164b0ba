"""What all tools share: a configuration with overrides, one clear sentence for a mistake, exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rcg import config
from rcg.core.errors import UserError
from rcg.distributed import launch as parallel


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def stage(train: Callable[..., None], description: str) -> NoReturn:
    """Run a training stage: CONFIG [section.key=value ...] [--resume | --overwrite]."""
    parser = parser_for(description, epilog=config.describe)
    add_experiment(parser)
    fresh = parser.add_mutually_exclusive_group()
    fresh.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    fresh.add_argument("--overwrite", action="store_true", help="start again, deleting what this stage left in the run")

    def run(arguments: argparse.Namespace) -> None:
        experiment = config.load(arguments.config, arguments.overrides)
        for doubt in experiment.doubts() if parallel.first_process() else ():
            print(f"mind: {doubt}", file=sys.stderr, flush=True)
        train(experiment, arguments.resume, arguments.overwrite)

    main(parser, run)


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """Let `parser` take CONFIG [section.key=value ...]."""
    parser.add_argument("config", help="YAML file of the experiment")
    parser.add_argument("overrides", nargs="*", help="section.key=value, after the file")


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Let `parser` take --precision."""
    parser.add_argument(
        "--precision",
        choices=("no", "bf16", "fp16", "auto"),
        default="no",
        help="mixed precision of the networks; bf16 is faster, and rounds [no]",
    )


def add_judges(parser: argparse.ArgumentParser) -> None:
    """Let `parser` take what an evaluation can be told: who judges, against what, and how samples are drawn."""
    from rcg.metrics.inception import TAPS  # only here: its libraries take long to load

    parser.add_argument("--reference", default="train", help="train, validation, a folder of images, or .npz [train]")
    parser.add_argument("--inception", help="file of torch-fidelity's InceptionV3, or none [its own, downloaded]")
    parser.add_argument("--tap", choices=TAPS, default="2048", help="its layer; only 2048 gives a FID [2048]")
    parser.add_argument(
        "--encoder",
        action="append",
        default=[],
        help="compare in an encoder's space too: own, a YAML file with an encoder section, or YAML; may be repeated "
        "[own, where there is one]",
    )
    parser.add_argument("--num", type=positive, default=5000, help="samples of a run [5000]")
    parser.add_argument("--seed", type=natural, default=0, help="sample i depends on (seed, i) alone [0]")
    parser.add_argument("--steps", type=positive, help="network evaluations of the generator [as configured]")
    parser.add_argument("--rdm-steps", type=positive, help="network evaluations of the RDM [as configured]")
    parser.add_argument("--labels", choices=("balanced", "random"), default="balanced", help="classes [balanced]")
    parser.add_argument("--batch-size", type=positive, default=64, help="images drawn at a time [64]")
    add_precision(parser)
    parser.add_argument("--resamples", type=natural, default=10, help="resamples for deviations; 0: none [10]")


def parser_for(description: str, epilog: Callable[[], str] | None = None) -> argparse.ArgumentParser:
    """Return a parser whose mistakes are `UserError`s; `epilog` is only computed when help is asked for."""
    _leave_script_folder()
    wants_help = {"-h", "--help"} & set(sys.argv[1:])
    return _Parser(
        description=description,
        epilog=epilog() if epilog and wants_help else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def main(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], Any], arguments: Sequence[str] | None = None
) -> NoReturn:
    """Parse, run, and exit: 0 when it went well, 2 with one sentence when a person can mend it."""
    try:
        run(parser.parse_intermixed_args(arguments))
        parallel.leave()
    except UserError as error:
        if parallel.first_process():
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    sys.exit(0)


def positive(text: str) -> int:
    """Read a whole number above zero from the command line."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def natural(text: str) -> int:
    """Read a whole number from the command line."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or above, got {text!r}")
    return int(text)


def scale(text: str) -> float:
    """Read a number that is not negative from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number, 0 or above, got {text!r}")
    return value


def _leave_script_folder() -> None:
    """Python searches a script's own folder first, where tools/list_encoders.py would hide the package of that name."""
    script = Path(sys.argv[0]).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != script]
