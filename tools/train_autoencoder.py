"""Train the autoencoder of an experiment's generator on its own images, into RUN/autoencoder.

accelerate launch tools/train_autoencoder.py CONFIG [section.key=value ...] [--resume | --overwrite]
"""

from rcg import cli

if __name__ == "__main__":
    cli.train("autoencoder", __doc__)
