"""How much of an image its code keeps, and how much its representation alone (Diffusion Autoencoders, Table 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rcg.core.console import progress, say
from rcg.core.errors import UserError
from rcg.editing.images import SquareImage
from rcg.metrics.image import psnr, ssim
from rcg.metrics.perceptual import EncoderDistance, PerceptualDistance, VGGDistance
from rcg.pipeline import Code, Pipeline
from rcg.visual.documents import render, write_json
from rcg.visual.grids import save_rows


class Spread(NamedTuple):
    """A figure of several images."""

    mean: float
    std: float
    """Over images."""


@dataclass(frozen=True)
class Row:
    """How well images come back.

    Attributes:
        noise: from which noise they were generated.
        steps: of the sampler.
        mse: mean squared error of images in [0, 1].
        psnr: in dB.
        ssim: structural similarity, 1 for equal images.
        distance: perceptual distance; lower is better.
    """

    noise: str
    steps: int
    mse: Spread
    psnr: Spread
    ssim: Spread
    distance: Spread


@dataclass(frozen=True)
class Plan:
    """What to reconstruct with.

    Attributes:
        steps: numbers of steps to compare.
        seeds: noises of each image, besides its own.
        seed: of these.
        iterations: network evaluations for each step of the inversion.
        batch_size: images at a time.
    """

    steps: Sequence[int] = (10, 20, 50, 100)
    seeds: int = 8
    seed: int = 0
    iterations: int = 4
    batch_size: int = 64


def open_distance(pipeline: Pipeline) -> tuple[str, PerceptualDistance]:
    """Return the perceptual distance and its name: VGG-16 if its weights are there, else the run's own encoder."""
    try:
        return "LPIPS without learned weights (VGG-16)", VGGDistance(None).to(pipeline.device)
    except UserError:
        encoder = pipeline.representation.encoder
        return f"distance in the space of {encoder.config.name}", EncoderDistance(encoder)


def reconstruct(pipeline: Pipeline, images: Sequence[SquareImage], plan: Plan, out: Path) -> list[Row]:
    """Write reconstruction.json, reconstruction.md and reconstruction.png into `out`, and return the table.

    The picture shows the first images: originals, reconstructions, and what one representation allows (`plan.seeds`
    noises), which is what the encoder does not keep.
    """
    name, distance = open_distance(pipeline)
    originals = torch.stack([image.pixels for image in images])
    rows, shown = [], {"original": originals[:8]}
    for steps in progress(plan.steps, desc="step counts", unit="count"):
        for noise, results in _results(pipeline, originals, plan, steps):
            rows.append(_judge(noise, steps, results, originals, distance))
            if steps == plan.steps[-1]:
                shown[f"{noise}, {steps} steps"] = results[:8]
    variants = Code(pipeline.represent(originals[:1]).expand(plan.seeds, -1))
    shown["one representation, several noises"] = pipeline.decode(variants, plan.steps[-1], seed=plan.seed).cpu()
    facts = {"images": len(images), "distance": name, **asdict(plan)}
    write_json({"facts": facts, "rows": [asdict(row) for row in rows]}, out / "reconstruction.json")
    render(
        "reconstruction.md", out / "reconstruction.md", rows=rows, facts=facts, title=str(pipeline.config.folder_name)
    )
    save_rows(shown, f"{pipeline.config.folder_name} · {len(images)} images", out / "reconstruction.png")
    say(f"{out / 'reconstruction.md'} and {out / 'reconstruction.png'}")
    return rows


def _results(pipeline: Pipeline, originals: Tensor, plan: Plan, steps: int) -> Iterator[tuple[str, Tensor]]:
    """Yield, for each kind of noise, the reconstructions `(N, 3, H, W)`."""
    batches = torch.arange(len(originals)).split(plan.batch_size)
    if not pipeline.has_tokens:
        codes = (pipeline.encode(originals[rows], steps, plan.iterations) for rows in batches)
        yield "inverted", torch.cat([pipeline.decode(code, steps).cpu() for code in codes])
    z = [pipeline.represent(originals[rows]) for rows in batches]
    drawn = []
    for seed in range(plan.seed, plan.seed + plan.seeds):
        pairs = zip(z, batches, strict=True)
        images = [pipeline.decode(Code(part), steps, seed=seed, indices=rows.tolist()) for part, rows in pairs]
        drawn.append(torch.cat(images).cpu())
    yield "random", drawn[0]
    yield f"mean of {plan.seeds} random", torch.stack(drawn).mean(0)


def _judge(noise: str, steps: int, results: Tensor, originals: Tensor, distance: PerceptualDistance) -> Row:
    device = next(distance.parameters()).device
    pairs = zip(results.to(device).split(1), originals.to(device).split(1), strict=True)
    with torch.no_grad():
        distances = torch.stack([distance(result, original) for result, original in pairs])
    mse = (results - originals).square().mean((1, 2, 3))
    figures = (mse, psnr(results, originals), ssim(results, originals), distances.cpu())
    return Row(noise, steps, *(Spread(float(x.mean()), float(x.std(correction=0))) for x in figures))
