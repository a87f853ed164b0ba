"""Judge samples of digits by a classifier that had no part in making them: python docs/judge.py RUN SAMPLES.

SAMPLES is the folder of PNG files of `tools/sample.py RUN --num 500 --save-images`. The classifier, scikit-learn's SVC
with C = 10, learns from the pixels of the run's training images. Printed are the share of samples that it is sure of
(one class has a probability of at least 0.8), beside that of held-out images; the rarest and the most frequent class;
and copies: samples closer to a training image, in pixels, than held-out images are at their 1st percentile.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

from rcg import load_experiment
from rcg.data.images import Images, load_images
from rcg.data.pictures import read_picture


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("samples", type=Path)
    arguments = parser.parse_args()
    train, held_out = load_images(load_experiment(next(arguments.run.glob("*/config.yaml"))).data)
    samples = torch.stack([read_picture(path) for path in sorted(arguments.samples.glob("*.png"))]) / 255

    known, unseen, judged = gray(pixels(train)), gray(pixels(held_out)), gray(samples)
    assert train.labels is not None
    warnings.filterwarnings("ignore", "The `probability` parameter", FutureWarning)
    judge = SVC(C=10, probability=True, random_state=0).fit(known, train.labels)

    def sure(images: np.ndarray) -> float:
        return float((judge.predict_proba(images).max(1) >= 0.8).mean())

    def distance(images: np.ndarray) -> np.ndarray:
        return torch.cdist(torch.from_numpy(images), torch.from_numpy(known)).amin(1).numpy()

    classes = np.bincount(judge.predict(judged), minlength=len(train.classes)) / len(judged)
    copies = (distance(judged) < np.quantile(distance(unseen), 0.01)).mean()
    print(
        f"sure of {sure(judged):.1%} of {len(judged)} samples, of {sure(unseen):.1%} of {len(unseen)} held-out images"
    )
    print(f"classes have {classes.min():.1%} to {classes.max():.1%}; {copies:.1%} are copies")


def pixels(images: Images) -> Tensor:
    """Return first views `(N, 3, H, W)` of images, in [0, 1]."""
    return torch.stack([images[position]["image"] for position in range(len(images))])


def gray(images: Tensor) -> np.ndarray:
    """Return `(N, H W)` gray values of images `(N, 3, H, W)`."""
    return images.mean(1).flatten(1).numpy()


if __name__ == "__main__":
    main()
