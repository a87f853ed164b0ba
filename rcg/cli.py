"""What all tools share: parsers, configurations with overrides, one clear sentence for a mistake, exit code 2.

Importing this, and asking a tool for --help, loads no heavy library: tools import what computes inside their functions.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from rcg.config import Experiment, load_experiment
from rcg.config.help import describe_config
from rcg.core.console import first_process, warn
from rcg.core.errors import UserError

if TYPE_CHECKING:
    from rcg.encoding.run_folder import Mode
    from rcg.encoding.workspace import Workspace
    from rcg.evaluation.samples import SamplingPlan
    from rcg.training.stages import Stage

T = TypeVar("T")


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


def non_negative(text: str) -> float:
    """Read a number that is not negative from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number, 0 or above, got {text!r}")
    return value


def fraction(text: str) -> float:
    """Read a number above zero, at most one, from the command line."""
    value = non_negative(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most 1, got {text!r}")
    return value


OPTIONS: dict[str, dict[str, Any]] = {
    "--class": {"dest": "label", "type": natural, "help": "number of the class, for models trained on classes"},
    "--generator": {"help": "name of the generator's folder, in a run that has several"},
    "--guidance": {"type": non_negative, "help": "scale of classifier-free guidance [as configured]"},
    "--labels": {
        "choices": ("balanced", "random"),
        "default": "balanced",
        "help": "how classes are assigned to samples [balanced]",
    },
    "--precision": {
        "choices": ("no", "bf16", "fp16", "auto"),
        "default": "no",
        "help": "mixed precision of the networks; bf16 is faster, and rounds [no]",
    },
    "--rdm-steps": {"type": positive, "help": "network evaluations of the RDM [as configured]"},
    "--representations": {"type": Path, "help": "file of tools/sample_rdm.py to condition on, row i for sample i"},
    "--seed": {"type": natural, "default": 0, "help": "random seed; sample i depends on (seed, i) alone [0]"},
    "--steps": {"type": positive, "help": "network evaluations of the generator [as configured]"},
}
"""Options that several tools take."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parser_for(description: str | None, epilog: Callable[[], str] | None = None) -> argparse.ArgumentParser:
    """Return a parser whose mistakes are `UserError`s; `epilog` is only computed when help is asked for."""
    wants_help = {"-h", "--help"} & set(sys.argv[1:])
    return _Parser(
        description=description,
        epilog=epilog() if epilog and wants_help else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def main(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], Any], arguments: Sequence[str] | None = None
) -> NoReturn:
    """Parse, run, and exit: 0 when it went well, 2 with one sentence when the user can fix it, 1 on a closed pipe."""
    try:
        run(parser.parse_intermixed_args(arguments))
        _leave()
    except UserError as error:
        if first_process():
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of a pipe has read enough, as in `| head`; Python's own flush at exit must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


def train(stage: str, description: str | None) -> NoReturn:
    """Run the training called `stage`: CONFIG [section.key=value ...] [--resume | --overwrite]."""
    parser = experiment_parser(description)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    mode.add_argument("--overwrite", action="store_true", help="start again, deleting what this stage left in the run")

    def run(arguments: argparse.Namespace) -> None:
        experiment = load(arguments)
        from rcg.encoding.run_folder import Mode
        from rcg.training import stages

        if arguments.overwrite:
            chosen = Mode.OVERWRITE
        elif arguments.resume:
            chosen = Mode.RESUME
        else:
            chosen = Mode.START
        train_stage(stages.STAGES[stage], experiment, chosen)

    main(parser, run)


def train_stage(stage: Stage, experiment: Experiment, mode: Mode) -> None:
    """Launch the processes and train one stage of an experiment."""
    from rcg.distributed.launch import launch
    from rcg.encoding.workspace import Workspace
    from rcg.training.stages import run_stage

    config = stage.train_config(experiment)
    accelerator = launch(config, stage.folder(experiment).path, stage.shardable)
    run_stage(stage, Workspace(experiment, accelerator), mode)


def experiment_parser(description: str | None, epilog: Callable[[], str] = describe_config) -> argparse.ArgumentParser:
    """Return a parser that takes CONFIG [section.key=value ...], and describes the keys of experiments."""
    parser = parser_for(description, epilog)
    parser.add_argument("config", help="YAML file of the experiment")
    parser.add_argument("overrides", nargs="*", help="section.key=value, after the file")
    return parser


def load(arguments: argparse.Namespace) -> Experiment:
    """Load the experiment that the arguments of `experiment_parser` name, and print its warnings."""
    experiment = load_experiment(arguments.config, arguments.overrides)
    for warning in experiment.warnings():
        warn(warning)
    return experiment


def open_workspace(arguments: argparse.Namespace) -> Workspace:
    """Load the experiment that the arguments of `experiment_parser` name, and launch the processes."""
    experiment = load(arguments)
    from rcg.distributed.launch import launch
    from rcg.encoding.workspace import Workspace

    return Workspace(experiment, launch())


def add(parser: argparse.ArgumentParser, *names: str) -> None:
    """Let `parser` take some of the `OPTIONS`."""
    for name in names:
        parser.add_argument(name, **OPTIONS[name])


def add_number(parser: argparse.ArgumentParser, default: int, subject: str = "number of samples") -> None:
    """Let `parser` take --num, as `count`."""
    text = f"{subject} [{default}]"
    parser.add_argument("--num", dest="count", metavar="NUM", type=positive, default=default, help=text)


def add_sampling(parser: argparse.ArgumentParser, num: int) -> None:
    """Let `parser` take the options of a `SamplingPlan` but --guidance; by default there are `num` samples."""
    add_number(parser, num)
    add(parser, "--seed", "--steps", "--rdm-steps")
    parser.add_argument("--batch-size", type=positive, default=64, help="images generated at a time [64]")
    add(parser, "--precision")


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """Let `parser` take the options of a `MetricOptions`."""
    parser.add_argument("--reference", default="train", help="train, validation, a folder of images, or .npz [train]")
    parser.add_argument("--inception", help="file of torch-fidelity's InceptionV3, or none [its own, downloaded]")
    parser.add_argument(
        "--tap", choices=("64", "192", "768", "2048"), default="2048", help="its layer; only 2048 gives a FID [2048]"
    )
    text = (
        "compare in an encoder's space too: own, a YAML file with an encoder section, or YAML; may be repeated "
        "[own, where there is one]"
    )
    parser.add_argument("--encoder", dest="encoders", metavar="ENCODER", action="append", default=[], help=text)
    parser.add_argument("--resamples", type=natural, default=10, help="resamples for standard deviations; 0: none [10]")


def create(kind: Callable[..., T], arguments: argparse.Namespace, **others: Any) -> T:
    """Return a `kind`, with those arguments of the command line that have the names of its parameters, and `others`."""
    values = vars(arguments) | others
    return kind(**{name: values[name] for name in inspect.signature(kind).parameters if name in values})


def sampling_plan(arguments: argparse.Namespace) -> SamplingPlan:
    """Return how samples are generated; options that a tool does not take have their defaults."""
    from rcg.evaluation.samples import SamplingPlan
    from rcg.pipeline import SamplingOptions

    return create(SamplingPlan, arguments, options=create(SamplingOptions, arguments))


def output_folder(path: Path) -> Path:
    """Return the folder that results go to; raises `UserError` if it is a file."""
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {path} is a file, not a folder")
    return path


def _leave() -> None:
    """Part from the other processes, where this one has joined any."""
    if "torch.distributed" in sys.modules:
        from rcg.distributed.launch import leave

        leave()
