"""One page about an encoder: is its representation worth modeling, before anyone trains on it?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure
import torch
from sklearn.manifold import TSNE
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from rcg.config import Experiment
from rcg.core.checkpoint import atomic
from rcg.core.errors import UserError
from rcg.data.images import ContrastivePairs, Images, load_images
from rcg.distributed import launch as parallel
from rcg.encoding.representation import Representation, Transform, build_encoder, open_representation
from rcg.metrics.frechet import frechet_distance, halves
from rcg.metrics.representation import (
    alignment,
    effective_rank,
    knn_accuracy,
    linear_accuracy,
    nearest,
    spectrum,
    uniformity,
)
from rcg.visual.grids import grid

MAPPED = 1000
"""Images in the map."""
PAIRED = 256
"""Images of which two random views are compared."""
SHOWN, NEIGHBORS = 8, 7


class Judged(NamedTuple):
    """Representations z of both parts of a split, and how fast they came."""

    train: Tensor  # (N, d)
    test: Tensor  # (M, d)
    images_per_second: float


def inspect(experiment: Experiment, out: Path, count: int) -> dict[str, float]:
    """Judge the experiment's encoder on at most `count` images of each split; write report.md and report.png.

    Raises:
        UserError: there is no encoder yet, or there are too few images to judge it.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file, not a folder")
    representation = open_representation(experiment)
    device = parallel.start().device
    split = load_images(experiment.data)
    if len(split.train) < 2 * SHOWN or len(split.validation) < SHOWN:
        raise UserError(f"{len(split.train)} training and {len(split.validation)} held-out images are too few to judge")
    judged = _judge(representation, split.train, split.validation, count, device, "encoding")
    labels = None
    if split.train.labels is not None and split.validation.labels is not None:
        labels = (split.train.labels[: len(judged.train)], split.validation.labels[: len(judged.test)])
    metrics = _metrics(judged, labels)
    metrics["alignment"] = _alignment(representation, split.train, experiment, device)
    beside = {} if labels is None else _beside(experiment, split.train, split.validation, judged, labels, device)
    _draw(judged, labels, split.train, split.validation, out / "report.png")
    _write(representation, experiment, judged, metrics, beside, out / "report.md")
    return metrics


def _judge(
    representation: Representation, train: Images, test: Images, count: int, device: torch.device, what: str
) -> Judged:
    """Encode both parts of a split, and fit what has to be fitted to the first."""
    (known, seconds), (held_out, _) = (_encode(representation, images, count, device, what) for images in (train, test))
    transform = representation.transform
    if transform.needs_fit:
        transform.fit(known)
    return Judged(transform(known), transform(held_out), len(known) / seconds)


@torch.no_grad()
def _encode(
    representation: Representation, images: Images, count: int, device: torch.device, what: str
) -> tuple[Tensor, float]:
    """Return raw representations `(n, D)` of the first images, and the seconds that the encoder took."""
    total = min(count, len(images))
    workers = 0 if images.in_memory else min(8, parallel.cores())
    batches: DataLoader[Any] = DataLoader(images, batch_size=128, sampler=range(total), num_workers=workers)
    representation.encoder.to(device)  # the transform stays where the vectors are gathered
    found, seconds = [], 0.0
    with tqdm(total=total, desc=what, unit="image") as bar:
        for batch in batches:
            image = batch["image"].to(device)
            start = time.perf_counter()
            found.append(representation.encode(image).cpu())
            seconds += time.perf_counter() - start
            bar.update(len(image))
    return torch.cat(found), seconds


def _metrics(judged: Judged, labels: tuple[Tensor, Tensor] | None) -> dict[str, float]:
    metrics = {}
    if labels:
        metrics["knn_accuracy"] = knn_accuracy(judged.train, labels[0], judged.test, labels[1])
        metrics["linear_accuracy"] = linear_accuracy(judged.train, labels[0], judged.test, labels[1])
    first, second = halves(len(judged.train), len(judged.train))
    return metrics | {
        "uniformity": uniformity(judged.test[:2000]),
        "effective_rank": effective_rank(judged.train),
        "rep_fd_floor": frechet_distance(judged.train[first], judged.train[second]),
        "images_per_second": judged.images_per_second,
    }


def _alignment(representation: Representation, images: Images, experiment: Experiment, device: torch.device) -> float:
    pairs = ContrastivePairs(images, experiment.encoder.train.augment)
    views = torch.stack([pairs[(i, 0)]["views"] for i in range(min(PAIRED, len(images)))]).to(device)
    return alignment(*(representation.transform(representation.encode(view).cpu()) for view in views.unbind(1)))


def _beside(
    experiment: Experiment,
    train: Images,
    test: Images,
    judged: Judged,
    labels: tuple[Tensor, Tensor],
    device: torch.device,
) -> dict[str, float]:
    """Return the 10-NN accuracy of what has learned nothing: raw pixels, and the same network with random weights."""
    pixels = [
        torch.stack([torch.nn.functional.adaptive_avg_pool2d(images[i]["image"], 16).flatten() for i in range(n)])
        for images, n in ((train, len(judged.train)), (test, len(judged.test)))
    ]
    torch.manual_seed(0)
    network = build_encoder(experiment.encoder, experiment.data.image_size, load=False)
    untrained = Representation(network, Transform(experiment.normalize, experiment.projection))
    random = _judge(untrained, train, test, len(judged.train), device, "encoding, random weights")
    return {
        "the same network with random weights": knn_accuracy(random.train, labels[0], random.test, labels[1]),
        "raw pixels (16 x 16)": knn_accuracy(pixels[0], labels[0], pixels[1], labels[1]),
    }


def _draw(judged: Judged, labels: tuple[Tensor, Tensor] | None, train: Images, test: Images, path: Path) -> None:
    """Draw the spectrum, a map, and the nearest training images of some held-out ones."""
    figure = matplotlib.figure.Figure(figsize=(13, 8), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.1))  # type: ignore[misc]
    left, right = above.subplots(1, 2)
    shares = spectrum(judged.train)
    left.semilogy(range(1, len(shares) + 1), shares.numpy())
    left.set(xlabel="component", ylabel="share of the singular values", title="spectrum of z: what falls off is unused")
    mapped = judged.train[:MAPPED]
    places = TSNE(perplexity=min(30, len(mapped) // 4), init="pca", random_state=0).fit_transform(mapped.numpy())
    colors = None if labels is None else labels[0][:MAPPED].numpy()
    dots = right.scatter(*places.T, c=colors, cmap="tab10" if colors is not None else None, s=6)
    right.set(title="t-SNE map of training images", xticks=[], yticks=[])
    if labels is not None and len(train.classes) <= 10:
        right.legend(
            dots.legend_elements(num=None)[0], train.classes, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5)
        )
    chosen = torch.arange(SHOWN)
    found = nearest(judged.test[chosen], judged.train, NEIGHBORS)
    panel = torch.stack(
        [
            image
            for query, neighbors in zip(chosen.tolist(), found.tolist(), strict=True)
            for image in (test[query]["image"], *(train[i]["image"] for i in neighbors))
        ]
    )
    axes = below.subplots(1, 1)
    axes.imshow(grid(panel, columns=2 * (NEIGHBORS + 1)).permute(1, 2, 0).numpy())
    axes.set(title=f"held-out images, each with its {NEIGHBORS} nearest training images (two to a row)")
    axes.axis("off")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _write(
    representation: Representation,
    experiment: Experiment,
    judged: Judged,
    metrics: dict[str, float],
    beside: dict[str, float],
    path: Path,
) -> None:
    encoder: Any = representation.encoder
    config = experiment.encoder
    origin = "trained in this run" if config.weights is None else f"weights: {config.weights}"
    license = "none, they are yours" if config.weights is None else encoder.license or "not stated"
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    kind = getattr(config, "model", getattr(config, "arch", ""))
    lines = [
        f"# {config.name} {kind}",
        "",
        f"{origin}; {millions:.1f} M parameters; input {getattr(encoder, 'side', '?')} px; "
        f"license of the weights: {license}. z: {representation.space.shape[0]} features "
        f"({representation.transform.id}). Data: {experiment.data.name} at {experiment.data.image_size} px, "
        f"{len(judged.train)} training and {len(judged.test)} held-out images.",
        "",
        "| | | what is good |",
        "|---|---|---|",
    ]
    rows = {
        "knn_accuracy": ("10-NN accuracy (cosine)", "{:.1%}", "high; compare with the rows below"),
        **{name: (f"10-NN accuracy of {name}", "{:.1%}", "what nothing learned reaches") for name in beside},
        "linear_accuracy": ("linear probe", "{:.1%}", "high"),
        "alignment": ("alignment of two random views", "{:.3f}", "low: 0 is invariant, 2 is unrelated"),
        "uniformity": ("uniformity", "{:.2f}", "low: MoCo v3 on ImageNet has -3.94 (RCG, Table 7a)"),
        "effective_rank": ("effective rank", "{:.1f}", f"high; at most {representation.space.shape[0]}"),
        "rep_fd_floor": (f"rep-FD floor at {len(judged.train) // 2} images", "{:.3f}", "what a perfect RDM reaches"),
        "images_per_second": ("images per second", "{:.1f}", "high; each image is encoded once"),
    }
    values = metrics | beside
    lines += [
        f"| {title} | {form.format(values[key])} | {good} |"
        for key, (title, form, good) in rows.items()
        if key in values
    ]
    lines += ["", "![spectrum, map and nearest neighbors](report.png)", ""]
    with atomic(path) as temporary:
        temporary.write_text("\n".join(lines))
