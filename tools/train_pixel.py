"""Train the pixel generator of an experiment into RUN/<generator>.

accelerate launch tools/train_pixel.py configs/digits.yaml [section.key=value ...] [--resume | --overwrite]
"""

from rcg import cli

if __name__ == "__main__":
    cli.train("generator", __doc__)
