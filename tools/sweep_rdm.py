"""Compare samplers of a trained RDM: rep-FD, beside that of real representations, over samplers and numbers of steps.

python tools/sweep_rdm.py configs/cifar10.yaml [section.key=value ...] --steps 8 16 32 250
"""

import argparse

from rcg import cli


def main() -> None:
    """Parse the command line and sweep."""
    parser = cli.experiment_parser(__doc__)
    parser.add_argument("--samplers", nargs="+", help="samplers to compare [all that the RDM can use]")
    steps = [4, 8, 16, 32, 64]
    text = "numbers of network evaluations to compare [4 8 16 32 64]"
    parser.add_argument("--steps", nargs="+", type=cli.count, default=steps, help=text)
    cli.add_number(parser, 5000, "number of representations, at most the validation images", least=2)
    cli.add(parser, "--seed", "--allow-untrained-null")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Write and print samplers.md: one row per sampler, one column per number of steps."""
    work = cli.open_workspace(arguments)
    from rcg.evaluation.rdm_samples import sweep_samplers

    sweep_samplers(
        work, arguments.samplers, arguments.steps, arguments.count, arguments.seed, arguments.allow_untrained_null
    )


if __name__ == "__main__":
    main()
