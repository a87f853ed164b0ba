"""One page about an encoder: whether its representation is worth modeling, before anyone trains on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg.config import identity
from rcg.core.console import progress, say
from rcg.core.errors import UserError
from rcg.data.augment import ContrastivePairs
from rcg.data.images import Images, Split
from rcg.data.loading import batches
from rcg.encoding.encoder import build_encoder
from rcg.encoding.representation import Representation
from rcg.encoding.transform import Transform
from rcg.encoding.workspace import Workspace
from rcg.metrics.frechet import few_for, frechet_distance, halves
from rcg.metrics.representation import (
    alignment,
    effective_rank,
    knn_accuracy,
    linear_accuracy,
    nearest_by_cosine,
    spectrum,
    uniformity,
)
from rcg.visual.documents import Document
from rcg.visual.figures import drawn
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
PICTURE = "report.png"
COLORS = [f"C{number}" for number in range(10)]
"""Colors of the map, for so many classes; more of them have no names."""
ENCODE_BATCH = 128
LEAST_SHARE = 1e-6
"""Least singular value that is drawn, over the largest: z that are standardized one by one lack a dimension."""
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
    """Inspect the experiment's encoder on at most `count` images of each split; write a report.

    Raises:
        UserError: there is no encoder yet, or there are too few images.
    """
    representation = Representation(work.encoder, _new_transform(work))
    split, device = work.images, work.accelerator.device
    numbers = [min(count, len(images)) for images in split]
    if numbers[0] < 2 * QUERIES or numbers[1] < QUERIES:
        raise UserError(
            f"{numbers[0]} training and {numbers[1]} validation images are too few for a report, which needs "
            f"{2 * QUERIES} and {QUERIES}"
        )
    encoded = _encode_split(representation, split, count, device, "encoding")
    rows = list(_rows(encoded, representation, work))
    _draw(encoded, split, out / PICTURE)
    half, width = len(encoded.train) // 2, representation.space.shape[0]
    report = Document(
        title=f"Encoder {work.experiment.encoder.name}",
        head=("metric", "value", "ideal"),
        rows=rows,
        warnings=[few_for(f"the reference rep-FD of {half} z", width)] if half <= width else [],
        pictures={PICTURE: "spectrum, map and nearest neighbors"},
        drawn=[PICTURE],
        settings=_settings(encoded, representation, work),
    )
    say(report.write(out, "report").read_text(encoding="utf-8"))
    say(f"look at {out / PICTURE}")


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


def _rows(encoded: Encoded, representation: Representation, work: Workspace) -> Iterator[tuple[str, str, str]]:
    """Yield metric, value and ideal of everything that is measured."""
    if encoded.labels is not None:
        accuracy = encoded.accuracy(knn_accuracy)
        yield "10-NN accuracy (cosine)", f"{accuracy:.1%}", "high; compare with the rows below"
        for name, baseline in _baselines(work, encoded).items():
            yield f"10-NN accuracy of {name}", f"{baseline:.1%}", "baseline without training"
        yield "linear probe", f"{encoded.accuracy(linear_accuracy):.1%}", "high"
    aligned = _alignment(representation, work.images.train, work)
    yield "alignment of two random views", f"{aligned:.3f}", "low: 0 is invariant, 2 is unrelated"
    spread = uniformity(encoded.validation[:UNIFORMITY_IMAGES])
    if spread is not None:
        yield "uniformity", f"{spread:.2f}", "low: MoCo v3 on ImageNet has -3.94 (RCG, Table 7a)"
    width = representation.space.shape[0]
    yield "effective rank", f"{effective_rank(encoded.train):.1f}", f"high; at most {width}"
    first, second = halves(len(encoded.train), len(encoded.train))
    reference = frechet_distance(encoded.train[first], encoded.train[second])
    yield f"reference rep-FD of {len(first)} real z", f"{reference:.3f}", "what a perfect RDM reaches with as many"
    yield "images per second", f"{encoded.images_per_second:.1f}", "high; each image is encoded once"


def _settings(encoded: Encoded, representation: Representation, work: Workspace) -> dict[str, Any]:
    """Return what was inspected."""
    data, config = work.experiment.data, work.experiment.encoder
    origin = (
        (config.weights, work.encoder.license or "not stated")
        if config.weights
        else ("trained in this run", "none, they are yours")
    )
    return {
        "weights": origin[0],
        "license of the weights": origin[1],
        "parameters": f"{sum(p.numel() for p in work.encoder.parameters()):,}",
        "input": f"{work.encoder.side or data.image_size} px",
        "z": f"{representation.space.shape[0]} features ({representation.transform.id})",
        "data": f"{data.name} at {data.image_size} px",
        "images": f"{len(encoded.train)} training and {len(encoded.validation)} validation images",
        "encoder": identity(config),
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
    from sklearn.manifold import TSNE

    mapped = encoded.train[:MAP_IMAGES]
    places = mapped[:, :2].numpy()  # equal ones have no map, and t-SNE divides by their variance
    if float(mapped.std(0).max()) > 0:
        places = TSNE(perplexity=min(30, len(mapped) // 4), init="pca", random_state=0).fit_transform(mapped.numpy())
    with drawn(path, 13, 8, dpi=110) as figure:
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.1))  # type: ignore[misc]
        left, right = above.subplots(1, 2)
        shares = spectrum(encoded.train)
        shares = shares[shares > LEAST_SHARE * shares[0]]
        left.semilogy(range(1, len(shares) + 1), shares.numpy())
        text = "spectrum of z: components after a steep fall are unused"
        left.set(xlabel="component", ylabel="share of the singular values", title=text)
        labels = None if encoded.labels is None else encoded.labels[0][:MAP_IMAGES]
        _draw_map(right, places, labels, split.train.classes)

        nearest = nearest_by_cosine(encoded.validation[:QUERIES], encoded.train, NEIGHBORS)
        images = []
        for query, neighbors in enumerate(nearest.tolist()):
            images += [split.validation[query]["image"], *(split.train[i]["image"] for i in neighbors)]
        axes = below.subplots(1, 1)
        axes.imshow(grid(torch.stack(images), columns=2 * (NEIGHBORS + 1)).permute(1, 2, 0).numpy())
        axes.set(title=f"validation images, each with its {NEIGHBORS} nearest training images (two to a row)")
        axes.axis("off")


def _draw_map(axes: Any, places: Any, labels: Tensor | None, classes: Sequence[str]) -> None:
    """Draw dots at `places` `(N, 2)`, colored by their labels `(N,)`; few classes are named."""
    axes.set(title="t-SNE map of training images", xticks=[], yticks=[])
    if labels is None:
        axes.scatter(*places.T, s=6)
    elif len(classes) > len(COLORS):
        axes.scatter(*places.T, c=labels.numpy(), cmap="turbo", s=6)
    else:
        for label in labels.unique().tolist():
            axes.scatter(*places[labels.numpy() == label].T, color=COLORS[label], s=6, label=classes[label])
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
