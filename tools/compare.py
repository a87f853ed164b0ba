"""Compare what a generator is told: nothing, its own first sample, a cluster, a class, a generated z, a real one.

accelerate launch tools/compare.py configs/cifar10.yaml                    trains the networks that are missing first
python tools/compare.py configs/cifar10.yaml --inception FILE --tap 768    without a download
python tools/compare.py configs/cifar10.yaml --arms none generated oracle --no-train

The encoder, the RDM and, for a generator of tokens, the tokenizer have to be trained. All networks are trained with the
same section generator.train, each in a folder of its own in the run; those that are there are used as they are, and one
that was interrupted goes on. A comparison that was interrupted goes on where it stopped when the same command is given
again. The table states network evaluations, seconds, distances with deviations, and the share of the gap between no
condition and real representations that each arm closes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rcg import cli, config
from rcg.comparison.arms import ARMS, Drawing
from rcg.comparison.report import write
from rcg.comparison.study import Study, compare
from rcg.config import Experiment
from rcg.core.errors import UserError
from rcg.evaluation.extractors import Judges


def main() -> None:
    """Parse the command line and compare."""
    parser = cli.parser_for(__doc__ or "", epilog=_arms)
    cli.add_experiment(parser)
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="some of those below [all]"
    )
    parser.add_argument("--t0", type=_share, default=0.5, help="share of the noise that a second pass begins at [0.5]")
    parser.add_argument("--no-train", action="store_true", help="judge only the arms whose networks are trained")
    parser.add_argument("--guidance", type=cli.scale, help="scale of classifier-free guidance [as configured]")
    cli.add_judges(parser)
    parser.add_argument("--out", type=Path, help="folder of the results [RUN/comparison-GENERATOR]")
    parser.add_argument("--cache", type=Path, help="folder for features, to share references [RUN/evaluation/features]")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Compare, and print what was found and where to look."""
    experiment = config.load(arguments.config, arguments.overrides)
    study = _study(arguments, experiment)
    if study.out.exists() and not study.out.is_dir():
        raise UserError(f"--out {study.out} is a file, not a folder")
    result = compare(study)
    if result is not None:
        write(study, result)
        print((study.out / "compare.md").read_text())
        print(f"look at {study.out / 'compare.html'}, which needs no other file")


def _study(arguments: argparse.Namespace, experiment: Experiment) -> Study:
    drawing = Drawing(
        arguments.num,
        arguments.seed,
        arguments.t0,
        arguments.labels,
        arguments.guidance,
        arguments.steps,
        arguments.rdm_steps,
        arguments.batch_size,
        arguments.precision,
    )
    name = experiment.generator.name if experiment.generator else "none"
    return Study(
        experiment,
        [key for key in ARMS if key in arguments.arms],
        drawing,
        Judges(arguments.inception, arguments.tap, arguments.encoder),
        arguments.reference,
        arguments.resamples,
        arguments.out or experiment.run / f"comparison-{name}",
        arguments.cache or experiment.run / "evaluation" / "features",
        not arguments.no_train,
    )


def _share(text: str) -> float:
    value = cli.scale(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most 1, got {text!r}")
    return value


def _arms() -> str:
    """Describe the arms for `--help`."""
    lines = [f"  {key:10} {arm.name}: told {arm.told}" for key, arm in ARMS.items()]
    return "\n".join(["arms:", *lines, "", config.describe()])


if __name__ == "__main__":
    main()
