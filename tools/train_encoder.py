"""Pre-train an encoder on your own unlabeled images (MoCo v3) into RUN/encoder.

accelerate launch tools/train_encoder.py configs/digits.yaml [section.key=value ...] [--resume | --overwrite]
"""

from rcg import cli

if __name__ == "__main__":
    cli.train("encoder", __doc__)
