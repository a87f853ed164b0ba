"""Compare conditions of a generator: none, its own first sample, a cluster, a class, a generated z, a real one.

accelerate launch tools/compare.py configs/cifar10.yaml                    trains the networks that are missing first
python tools/compare.py configs/cifar10.yaml --inception FILE --tap 768    without a download
python tools/compare.py configs/cifar10.yaml --arms none generated oracle --no-train

The encoder, the RDM and, for a generator of tokens, the autoencoder have to be trained. All networks are trained with
the same section generator.train, each in a folder of its own in the run; trained ones are used as they are, and one
that was interrupted goes on. A comparison that was interrupted goes on where it stopped when the same command is given
again. The table states network evaluations, seconds, distances with stds, and the share of the gap between no condition
and real representations that each arm closes.
"""

import argparse

from rcg import cli
from rcg.comparison.arms import ARMS
from rcg.config import Experiment
from rcg.config.help import describe_config


def main() -> None:
    """Parse the command line and compare."""
    parser = cli.experiment_parser(__doc__, epilog=describe)
    names, text = list(ARMS), "some of those below [all]"
    parser.add_argument("--arms", nargs="+", choices=names, default=names, metavar="ARM", help=text)
    text = "share of the noise at which a second pass begins (the t0 of SDEdit) [0.5]"
    parser.add_argument("--sdedit-strength", type=cli.number(0.001, 1), default=0.5, help=text)
    parser.add_argument("--no-train", action="store_true", help="evaluate only the arms whose networks are trained")
    cli.add_sampling(parser, num=5000)
    cli.add(parser, "--guidance", "--labels")
    cli.add_metrics(parser)
    parser.add_argument("--out", type=cli.path, help="folder of the results [RUN/comparison-GENERATOR]")
    parser.add_argument(
        "--cache", type=cli.path, help="folder for features, to share references [RUN/evaluation/features]"
    )
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Compare; print the report, and where to look."""
    experiment = cli.load(arguments)
    config = experiment.require_generator()
    from rcg.comparison.compare import compare
    from rcg.comparison.report import write
    from rcg.comparison.study import Study
    from rcg.distributed.launch import launch
    from rcg.encoding.workspace import Workspace
    from rcg.evaluation.extractors import MetricOptions

    # All that follows runs in the precision of the trainings, which cannot change as long as a program runs.
    accelerator = launch(config.train.model_copy(update={"tracker": "none"}), shardable=True)
    work = Workspace(experiment, accelerator)
    study = Study(
        work=work,
        keys=[key for key in ARMS if key in arguments.arms],
        plan=cli.sampling_plan(arguments),
        metrics=cli.create(MetricOptions, arguments),
        out=cli.output_folder(arguments.out or work.run.comparison(config.name)),
        cache=cli.output_folder(arguments.cache or work.run.evaluation / "features"),
        train=None if arguments.no_train else train_generator,
    )
    result = compare(study)
    if result is not None:
        write(study, result)


def train_generator(experiment: Experiment) -> None:
    """Train the generator of an experiment, from its last state on."""
    from rcg.encoding.run_folder import Mode
    from rcg.training.stages import STAGES

    cli.train_stage(STAGES["generator"], experiment, Mode.RESUME)


def describe() -> str:
    """Describe the arms, and the keys of experiments, for `--help`."""
    lines = [f"  {key:10} {arm.name}; condition: {arm.condition_text}" for key, arm in ARMS.items()]
    return "\n".join(["arms:", *lines, "", describe_config()])


if __name__ == "__main__":
    main()
