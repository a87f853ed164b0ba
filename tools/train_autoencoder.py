"""Train the autoencoder of an experiment's generator on its own images, into RUN/autoencoder.

accelerate launch tools/train_autoencoder.py CONFIG [section.key=value ...] [--resume | --overwrite]
"""

from rcg import cli
from rcg.training import stages

if __name__ == "__main__":
    cli.stage(stages.train_tokenizer, __doc__)
