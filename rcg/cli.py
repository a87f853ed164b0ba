"""What all tools share: parsers, configurations with overrides, one clear sentence for a mistake, exit code 2.

Importing this, and asking a tool for --help, loads no heavy library: tools import what computes inside their functions.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from rcg.config import Experiment, load_experiment
from rcg.config.experiment import complete_keys
from rcg.config.help import describe_config
from rcg.config.parsing import Unquoted, shortened
from rcg.config.sections import MAX_SCALE
from rcg.core.console import complain, first_process, say, session, warn
from rcg.core.errors import Stopped, UserError, nearest
from rcg.core.signals import ignore_interrupts

if TYPE_CHECKING:
    from rcg.encoding.run_folder import Mode, RunFolder
    from rcg.encoding.workspace import Workspace
    from rcg.evaluation.samples import SamplingPlan
    from rcg.pipeline import Pipeline
    from rcg.training.stages import Stage

T = TypeVar("T")


MAX_NAME = 300
"""Most characters of a file's name that a message shows."""
MAX_SAMPLES = 10_000_000
"""Most samples of tools that keep something of each."""


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return the type of an option that takes a whole number from `least` to `most`."""

    def read(text: str) -> int:
        value = Unquoted(text).resolved()
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {shortened(text)}")
        return value

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """Return the type of an option that takes a number from `least` to `most`."""

    def read(text: str) -> float:
        value = Unquoted(text).resolved()
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected a number from {least:g} to {most:g}, got {shortened(text)}")
        return float(value)

    return read


def path(text: str) -> Path:
    """Read a path from the command line; `~` is the home folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("expected a path, got nothing")
    return Path(os.path.expanduser(text))  # pathlib fails for a user that is not there


def run_folder(text: str) -> Path:
    """Read the folder of a run from the command line."""
    folder = path(text)
    if folder.is_file():
        raise argparse.ArgumentTypeError(f"{folder} is a file: give the folder of its run")
    return folder


count = whole(1, 100_000)
"""The type of numbers of steps, pixels and the like."""
batch_size = whole(1, 1_000_000)
guidance_scale = number(0, MAX_SCALE)

OPTIONS: dict[str, dict[str, Any]] = {
    "--allow-untrained-null": {
        "action": "store_true",
        "help": "guide even from a null condition that was never trained (condition_dropout 0)",
    },
    "--class": {"dest": "label", "type": whole(0, 10**6), "help": "number of the class, for models trained on classes"},
    "--generator": {"help": "name of the generator's folder, in a run that has several"},
    "--guidance": {"type": guidance_scale, "help": "scale of guidance [as configured]"},
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
    "--rdm-steps": {"type": count, "help": "network evaluations of the RDM [as configured]"},
    "--representations": {"type": path, "help": "file of tools/sample_rdm.py to condition on, row i for sample i"},
    "--seed": {
        "type": whole(0, 2**63 - 1),
        "default": 0,
        "help": "random seed; sample i depends on (seed, i) alone [0]",
    },
    "--steps": {"type": count, "help": "network evaluations of the generator [as configured]"},
    "--weak": {
        "metavar": "snapshot|RUN|FILE",
        "help": "guide away from a worse model: the one that train.snapshot has kept, or another [the null condition]",
    },
}
"""Options that several tools take."""


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are `UserError`s that say what to type."""

    def error(self, message: str) -> NoReturn:
        commands = re.findall(r"^(?:python|accelerate launch) .*", self.description or "", re.MULTILINE)
        if "arguments are required" in message and commands:
            message = f"{message}; for example: {re.split('  +', commands[0])[0]}"
        raise UserError(f"{message} (see {self.prog} --help)")

    def read(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Parse options and positional arguments in any order."""
        known, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)[:200]}{self._meant(unknown)}")
        return known

    def _meant(self, unknown: list[str]) -> str:
        """Return a hint about the first of some unknown arguments."""
        typed, _, value = unknown[0].partition("=")
        option = typed.replace("_", "-").replace(".", "-")
        options = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        name = typed.lstrip("-").replace("-", "_")
        keys = complete_keys(name.split("."), {}) if any(action.dest == "overrides" for action in self._actions) else []
        if option in options:
            return f"; did you mean {option}?"
        if keys:
            value = value or next((item for item in unknown[1:] if not item.startswith("-")), "VALUE")
            return f"; a key is written without dashes: {' or '.join(f'{key}={value}' for key in keys)}"
        return f"; {nearest(option, options)}"


def parser_for(description: str | None, epilog: Callable[[], str] | None = None) -> _Parser:
    """Return a parser whose mistakes are `UserError`s; `epilog` is only computed when help is asked for."""
    wants_help = {"-h", "--help"} & set(sys.argv[1:])
    return _Parser(
        description=description,
        epilog=epilog() if epilog and wants_help else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def main(parser: _Parser, run: Callable[[argparse.Namespace], Any], arguments: Sequence[str] | None = None) -> NoReturn:
    """Parse, run, and exit: 0 when it went well, 2 with one sentence when the user can fix what went wrong.

    1 stands for a closed pipe, 130 for Ctrl-C. What files, folders and memory refuse is caught here, and nowhere else.
    """
    # On a busy machine threads that spin while they wait for others take the time of those: ten times slower. To be set
    # before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with session():
            try:
                _run(parser, run, arguments)
            except KeyboardInterrupt:
                ignore_interrupts()
                complain("error: interrupted; the same command goes on, or starts again")
                sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe has read enough, as in `| head`; Python's own flush at exit must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


def _run(parser: _Parser, run: Callable[[argparse.Namespace], Any], arguments: Sequence[str] | None) -> None:
    try:
        run(parser.read(arguments))
        _leave()
    except Stopped as stop:
        ignore_interrupts()
        say(str(stop))
        _leave()
        sys.exit(128 + stop.number)
    except BrokenPipeError:
        raise
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        if isinstance(error, UserError) or first_process():
            complain(f"error: {sentence}")  # every process refuses alike
        else:
            print(f"error: process {os.environ['RANK']}: {sentence}", file=sys.stderr, flush=True)
        sys.exit(2)


def _sentence(error: Exception) -> str | None:
    """Return what a user can do about an error, None where it is a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        files = [str(name)[:MAX_NAME] for name in (error.filename, error.filename2) if name is not None]
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        return f"{' -> '.join(files)}: {reason[:1].lower()}{reason[1:]}" if files else reason
    if re.search("PytorchStreamWriter|unexpected pos", str(error)):
        return f"a file cannot be written whole; is the disk full? ({_first_line(error)})"
    if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", str(error)):
        return f"there is not enough memory: make batches or networks smaller, or ask for less ({_first_line(error)})"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


SECTIONS = {"encoder": "encoder", "autoencoder": "generator.autoencoder", "rdm": "rdm", "generator": "generator"}
"""The section of each training, whose components its help describes."""


def train(stage: str, description: str | None) -> NoReturn:
    """Run the training called `stage`: CONFIG [section.key=value ...] [--resume | --overwrite]."""
    parser = experiment_parser(description, partial(describe_config, "data", SECTIONS[stage]))
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    mode.add_argument("--overwrite", action="store_true", help="start again, deleting what this stage left in the run")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the configuration, and stop")

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
        train_stage(stages.STAGES[stage], experiment, chosen, arguments.dry_run)

    main(parser, run)


def train_stage(stage: Stage, experiment: Experiment, mode: Mode, dry_run: bool = False) -> None:
    """Launch the processes and train one stage of an experiment, or check that it can be and print what it would be."""
    from rcg.distributed.launch import launch
    from rcg.encoding.workspace import Workspace
    from rcg.training.stages import run_stage

    config = stage.train_config(experiment)
    output_folder(stage.folder(experiment).path)
    accelerator = launch(config, stage.folder(experiment).path, stage.shardable)
    run_stage(stage, Workspace(experiment, accelerator), mode, dry_run)


def experiment_parser(description: str | None, epilog: Callable[[], str] = describe_config) -> _Parser:
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


def add_number(
    parser: argparse.ArgumentParser,
    default: int,
    subject: str = "number of samples",
    least: int = 1,
    most: int = MAX_SAMPLES,
) -> None:
    """Let `parser` take --num, as `count`."""
    text = f"{subject} [{default}]"
    parser.add_argument("--num", dest="count", metavar="NUM", type=whole(least, most), default=default, help=text)


def add_h_space(parser: argparse.ArgumentParser, found: str, where: str = "") -> None:
    """Add --block, --t-edit and --t-boost; `found` says whence the times are if they are not given.

    Args:
        parser: of a tool that edits in h-space.
        found: default of both times, in words.
        where: begins the help of each option.
    """
    text = f"{where}block of a dit whose output is moved, from 1 on [the middle one]"
    parser.add_argument("--block", type=count, help=text)
    text = f"{where}share of the way to noise where editing ends [{found}]"
    parser.add_argument("--t-edit", type=number(0, 1), metavar="SHARE", help=text)
    text = f"{where}share of the way below which fresh noise makes images sharper; 0: nowhere [{found}]"
    parser.add_argument("--t-boost", type=number(0, 1), metavar="SHARE", help=text)


def add_guidance_of_codes(parser: argparse.ArgumentParser, default: str = "1") -> None:
    """Let `parser` take --guidance for images that are decoded from their codes; not given, there is no `guidance`."""
    text = f"scale of guidance; other than 1 it leads away from images whose noise was found [{default}]"
    parser.add_argument("--guidance", type=guidance_scale, default=argparse.SUPPRESS, help=text)


def add_sampling(parser: argparse.ArgumentParser, num: int, most: int = MAX_SAMPLES) -> None:
    """Let `parser` take the options of a `SamplingPlan` but --guidance; by default there are `num` samples."""
    add_number(parser, num, most=most)
    add(parser, "--allow-untrained-null", "--seed", "--steps", "--rdm-steps")
    parser.add_argument("--batch-size", type=batch_size, default=64, help="images generated at a time [64]")
    add(parser, "--precision")


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """Let `parser` take the options of a `MetricOptions`."""
    parser.add_argument(
        "--reference",
        type=os.path.expanduser,
        default="train",
        help="train, validation, a folder of images, or .npz [train]",
    )
    parser.add_argument(
        "--inception",
        type=os.path.expanduser,
        help="file of torch-fidelity's InceptionV3, or none [its own, downloaded]",
    )
    parser.add_argument(
        "--tap", choices=("64", "192", "768", "2048"), default="2048", help="its layer; only 2048 gives a FID [2048]"
    )
    text = (
        "compare in an encoder's space too: own, a YAML file with an encoder section, or YAML; may be repeated "
        "[own, where there is one]"
    )
    parser.add_argument("--encoder", dest="encoders", metavar="ENCODER", action="append", default=[], help=text)
    parser.add_argument("--resamples", type=whole(0, 10_000), default=10, help="resamples for stds; 0: none [10]")


def create(kind: Callable[..., T], arguments: argparse.Namespace, **others: Any) -> T:
    """Return a `kind`, with those arguments of the command line that have the names of its parameters, and `others`."""
    values = vars(arguments) | others
    return kind(**{name: values[name] for name in inspect.signature(kind).parameters if name in values})


def sampling_plan(arguments: argparse.Namespace) -> SamplingPlan:
    """Return how samples are generated; options that a tool does not take have their defaults."""
    from rcg.evaluation.samples import SamplingPlan
    from rcg.pipeline import SamplingOptions

    return create(SamplingPlan, arguments, options=create(SamplingOptions, arguments))


def add_run(parser: argparse.ArgumentParser) -> None:
    """Let `parser` take the run, as `run`, of which a pipeline is loaded."""
    text = "folder of a run, or of save_pretrained; or owner/name on the hub"
    parser.add_argument("run", type=run_folder, help=text)


def open_pipeline(arguments: argparse.Namespace) -> Pipeline:
    """Launch the processes and load the pipeline that `add_run`, --generator and --precision name."""
    from rcg.distributed.launch import launch
    from rcg.pipeline import Pipeline

    return Pipeline.from_pretrained(arguments.run, arguments.generator).to(launch().device, arguments.precision)


def results_of(source: Path) -> RunFolder:
    """Return the folder for results about a run: itself; for `owner/name` on the hub, `name` where the tool runs."""
    from rcg.core.hub import looks_remote
    from rcg.encoding.run_folder import RunFolder

    return RunFolder(source.name if looks_remote(source) else source)


def output_folder(folder: Path) -> Path:
    """Return a folder for results, after trying to write there: before the work, and without leaving a trace.

    Raises:
        UserError: it is a file, or lies below one.
        OSError: nothing can be written there.
    """
    _refuse_file_above(folder, folder)
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    if first_process():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from error
        finally:
            for place in missing:
                with suppress(OSError):  # another process may have begun to write
                    place.rmdir()
    return folder


def output_file(file: Path) -> Path:
    """Return a file for results, after trying to write beside it; raises like `output_folder`, and for a folder."""
    if file.is_dir():
        raise UserError(f"results cannot go to {file}, which is a folder: name a file in it")
    _refuse_file_above(file, file.parent)
    output_folder(file.parent)
    return file


def _refuse_file_above(output: Path, folder: Path) -> None:
    above = next(place for place in (folder, *folder.parents) if place.exists())
    if not above.is_dir():
        raise UserError(f"results cannot go to {output}: {above} is a file, not a folder")


def _leave() -> None:
    """Part from the other processes, where this one has joined any."""
    if "torch.distributed" in sys.modules:
        from rcg.distributed.launch import leave

        leave()
