"""Train the representation diffusion model of an experiment into RUN/rdm.

accelerate launch tools/train_rdm.py configs/digits.yaml [section.key=value ...] [--resume | --overwrite]
"""

from rcg import cli
from rcg.training import stages

if __name__ == "__main__":
    cli.stage(stages.train_rdm, __doc__)
