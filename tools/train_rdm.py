"""Train the representation diffusion model of an experiment into RUN/rdm.

accelerate launch tools/train_rdm.py configs/digits.yaml [section.key=value ...] [--resume | --overwrite]
"""

from rcg import cli

if __name__ == "__main__":
    cli.train("rdm", __doc__)
