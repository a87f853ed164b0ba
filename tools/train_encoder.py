"""Pre-train an encoder on your own unlabeled images (MoCo v3) into RUN/encoder.

accelerate launch tools/train_encoder.py configs/digits.yaml [section.key=value ...] [--resume | --overwrite]
"""

from rcg import cli
from rcg.training import stages

if __name__ == "__main__":
    cli.stage(stages.train_encoder, __doc__)
