"""Compute representations and latents of a data set once, on all processes; the trainings read them from RUN/cache.

accelerate launch tools/cache.py configs/cifar10.yaml [section.key=value ...]

A killed run goes on where it stopped when the same command is given again. Latents, or tokens, are computed once there
is an autoencoder: published, or trained by tools/train_autoencoder.py.
"""

import argparse

from rcg import cli


def main() -> None:
    """Parse the command line and encode."""
    cli.main(cli.experiment_parser(__doc__), run)


def run(arguments: argparse.Namespace) -> None:
    """Fill the caches of an experiment."""
    work = cli.open_workspace(arguments)
    cli.output_folder(work.run.cache)
    from rcg.encoding.workspace import fill_caches

    fill_caches(work)


if __name__ == "__main__":
    main()
