"""Compute representations and latents of a data set once, on all processes; the trainings read them from RUN/cache.

accelerate launch tools/cache.py configs/cifar10.yaml [section.key=value ...]

A killed run goes on where it stopped when the same command is given again. Latents, or tokens, are computed once there
is an autoencoder: published, or trained by tools/train_autoencoder.py.
"""

import argparse

from rcg import cli, config
from rcg.training import stages


def main() -> None:
    """Parse the command line and encode."""
    parser = cli.parser_for(__doc__ or "", epilog=config.describe)
    cli.add_experiment(parser)
    cli.main(parser, cache)


def cache(arguments: argparse.Namespace) -> None:
    """Fill the cache of an experiment."""
    stages.fill_caches(config.load(arguments.config, arguments.overrides))


if __name__ == "__main__":
    main()
