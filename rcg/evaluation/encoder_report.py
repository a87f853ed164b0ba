"""One page about an encoder: whether its representation is worth modeling, before anyone trains on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg.config import identity
from rcg.core.checkpoint import atomic
from rcg.core.console import progress, say
from rcg.core.errors import UserError
from rcg.data.augment import ContrastivePairs
from rcg.data.images import Images, Split
from rcg.data.loading import batches
from rcg.encoding.encoder import build_encoder
from rcg.encoding.representation import Representation
from rcg.encoding.transform import Transform
from rcg.encoding.workspace import Workspace
from rcg.metrics.frechet import frechet_distance, halves
from rcg.metrics.representation import (
    alignment,
    effective_rank,
    knn_accuracy,
    linear_accuracy,
    nearest_by_cosine,
    spectrum,
    uniformity,
)
from rcg.visual.documents import render
from rcg.visual.grids import grid

MAP_IMAGES = 1000
"""Images in the map."""
PAIRED_IMAGES = 256
"""Images of which two random views are compared."""
UNIFORMITY_IMAGES = 2000
"""Images whose pairs enter the uniformity."""
QUERIES = 8
"""Validation images whose nearest training images are drawn."""
NEIGHBORS = 7
ENCODE_BATCH = 128
PIXEL_SIDE = 16
"""Side to which images are averaged down for the baseline of raw pixels."""


class Encoded(NamedTuple):
    """Representations z of both splits, their labels, and the speed of the encoder."""

    train: Tensor  # (N, d)
    validation: Tensor  # (M, d)
    labels: tuple[Tensor, Tensor] | None  # (N,), (M,)
    images_per_second: float

    def accuracy(self, metric: Callable[[Tensor, Tensor, Tensor, Tensor], float]) -> float:
        """Return the accuracy of a classifier that is fitted to the training split; there must be labels."""
        assert self.labels is not None
        return metric(self.train, self.labels[0], self.validation, self.labels[1])


def inspect(work: Workspace, out: Path, count: int) -> None:
    """Inspect the experiment's encoder on at most `count` images of each split; write report.md and report.png.

    Raises:
        UserError: there is no encoder yet, or there are too few images.
    """
    representation = Representation(work.encoder, _new_transform(work))
    split, device = work.images, work.accelerator.device
    if len(split.train) < 2 * QUERIES or len(split.validation) < QUERIES:
        raise UserError(
            f"{len(split.train)} training and {len(split.validation)} validation images are too few for a report"
        )
    encoded = _encode_split(representation, split, count, device, "encoding")
    metrics = _metrics(encoded)
    metrics["alignment"] = _alignment(representation, split.train, work)
    baselines = {} if encoded.labels is None else _baselines(work, encoded)
    _draw(encoded, split, out / "report.png")

    values = {
        "work": work,
        "representation": representation,
        "encoded": encoded,
        "parameters": sum(p.numel() for p in work.encoder.parameters()),
        "settings": identity(work.experiment.encoder),
        "metrics": metrics,
        "baselines": baselines,
    }
    render("encoder.md", out / "report.md", **values)
    say((out / "report.md").read_text())
    say(f"look at {out / 'report.png'}")


def _new_transform(work: Workspace) -> Transform:
    return Transform(work.experiment.normalize, work.experiment.projection)


def _encode_split(
    representation: Representation, split: Split, count: int, device: torch.device, title: str
) -> Encoded:
    """Encode both splits, and fit the transform to the first one if it has to be fitted."""
    train, seconds = _encode(representation, split.train, count, device, title)
    validation, _ = _encode(representation, split.validation, count, device, title)
    transform = representation.transform
    if transform.needs_fit:
        transform.fit(train)
    labels = None
    if split.train.labels is not None and split.validation.labels is not None:
        labels = (split.train.labels[: len(train)], split.validation.labels[: len(validation)])
    return Encoded(transform(train), transform(validation), labels, len(train) / seconds)


def _encode(
    representation: Representation, images: Images, count: int, device: torch.device, title: str
) -> tuple[Tensor, float]:
    """Return raw representations `(n, D)` of the first images, and the seconds that the encoder took."""
    positions = range(min(count, len(images)))
    representation.encoder.to(device)  # the transform stays where the vectors are gathered
    rep, seconds = [], 0.0
    with progress(total=len(positions), desc=title, unit="image") as bar:
        for batch in batches(images, positions, ENCODE_BATCH):
            image = batch["image"].to(device)
            start = time.perf_counter()
            rep.append(representation.encode(image).cpu())
            seconds += time.perf_counter() - start
            bar.update(len(image))
    return torch.cat(rep), seconds


def _metrics(encoded: Encoded) -> dict[str, float]:
    metrics = {}
    if encoded.labels is not None:
        metrics["knn_accuracy"] = encoded.accuracy(knn_accuracy)
        metrics["linear_accuracy"] = encoded.accuracy(linear_accuracy)
    first, second = halves(len(encoded.train), len(encoded.train))
    return metrics | {
        "uniformity": uniformity(encoded.validation[:UNIFORMITY_IMAGES]),
        "effective_rank": effective_rank(encoded.train),
        "reference_fd": frechet_distance(encoded.train[first], encoded.train[second]),
        "images_per_second": encoded.images_per_second,
    }


def _alignment(representation: Representation, images: Images, work: Workspace) -> float:
    """Compare two random views of some images."""
    pairs = ContrastivePairs(images, work.experiment.encoder.train.augment)
    views = torch.stack([pairs[(i, 0)]["views"] for i in range(min(PAIRED_IMAGES, len(images)))])
    first, second = views.to(work.accelerator.device).unbind(1)
    transform = representation.transform
    return alignment(transform(representation.encode(first).cpu()), transform(representation.encode(second).cpu()))


def _baselines(work: Workspace, encoded: Encoded) -> dict[str, float]:
    """Return the 10-NN accuracy without training: of raw pixels, and of the same network with random weights."""
    count, device = len(encoded.train), work.accelerator.device
    train_pixels = _pixels(work.images.train, count)
    validation_pixels = _pixels(work.images.validation, len(encoded.validation))
    pixels = encoded._replace(train=train_pixels, validation=validation_pixels)
    torch.manual_seed(0)
    network = build_encoder(work.experiment.encoder, work.image_size, load=False)
    untrained = Representation(network, _new_transform(work))
    random = _encode_split(untrained, work.images, count, device, "encoding, random weights")
    return {
        "the same network with random weights": random.accuracy(knn_accuracy),
        f"raw pixels ({PIXEL_SIDE} x {PIXEL_SIDE})": pixels.accuracy(knn_accuracy),
    }


def _pixels(images: Images, count: int) -> Tensor:
    """Return small versions `(count, 3 * side^2)` of the first images."""
    return torch.stack([F.adaptive_avg_pool2d(images[i]["image"], PIXEL_SIDE).flatten() for i in range(count)])


def _draw(encoded: Encoded, split: Split, path: Path) -> None:
    """Draw the spectrum, a map, and the nearest training images of some validation images."""
    import matplotlib.figure
    from sklearn.manifold import TSNE

    figure = matplotlib.figure.Figure(figsize=(13, 8), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.1))  # type: ignore[misc]
    left, right = above.subplots(1, 2)

    # Spectrum
    shares = spectrum(encoded.train)
    left.semilogy(range(1, len(shares) + 1), shares.numpy())
    left.set(xlabel="component", ylabel="share of the singular values", title="spectrum of z: a steep fall is unused")

    # Map
    mapped = encoded.train[:MAP_IMAGES]
    places = TSNE(perplexity=min(30, len(mapped) // 4), init="pca", random_state=0).fit_transform(mapped.numpy())
    colors = None if encoded.labels is None else encoded.labels[0][:MAP_IMAGES].numpy()
    dots = right.scatter(*places.T, c=colors, cmap="tab10" if colors is not None else None, s=6)
    right.set(title="t-SNE map of training images", xticks=[], yticks=[])
    classes = split.train.classes
    if encoded.labels is not None and len(classes) <= 10:
        handles = dots.legend_elements(num=None)[0]
        right.legend(handles, classes, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))

    # Neighbors
    nearest = nearest_by_cosine(encoded.validation[:QUERIES], encoded.train, NEIGHBORS)
    images = []
    for query, neighbors in enumerate(nearest.tolist()):
        images += [split.validation[query]["image"], *(split.train[i]["image"] for i in neighbors)]
    axes = below.subplots(1, 1)
    axes.imshow(grid(torch.stack(images), columns=2 * (NEIGHBORS + 1)).permute(1, 2, 0).numpy())
    axes.set(title=f"validation images, each with its {NEIGHBORS} nearest training images (two to a row)")
    axes.axis("off")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
