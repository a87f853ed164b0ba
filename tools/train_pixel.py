"""Train the pixel generator of an experiment into RUN/<generator>.

accelerate launch tools/train_pixel.py configs/digits.yaml [section.key=value ...] [--resume | --overwrite]
"""

from rcg import cli
from rcg.training import stages

if __name__ == "__main__":
    cli.stage(stages.train_generator, __doc__)
