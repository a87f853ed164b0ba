"""How much of an image its code keeps, and how much its representation alone (Diffusion Autoencoders, Table 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rcg.core.console import progress, say
from rcg.editing.distance import ImageDistance, open_distance
from rcg.editing.images import SquareImage
from rcg.metrics.image import psnr, ssim
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
class ReconstructionOptions:
    """What to reconstruct with.

    Attributes:
        steps: numbers of steps to compare.
        seeds: noises of each image, besides its own.
        seed: of these.
        iterations: network evaluations for each step of the inversion.
        batch_size: images at a time.
        guidance: scale in decoding.
    """

    steps: Sequence[int] = (10, 20, 50, 100)
    seeds: int = 8
    seed: int = 0
    iterations: int = 4
    batch_size: int = 64
    guidance: float = 1.0


def reconstruct(
    pipeline: Pipeline, images: Sequence[SquareImage], options: ReconstructionOptions, out: Path
) -> list[Row]:
    """Write reconstruction.json, reconstruction.md and reconstruction.png into `out`, and return the table.

    The picture shows the first images: originals, reconstructions, and what one representation allows (`options.seeds`
    noises), which is what the encoder does not keep.
    """
    distance = open_distance(pipeline)
    originals = torch.stack([image.pixels for image in images])
    rows, shown = [], {"original": originals[:8]}
    for steps in progress(options.steps, desc="numbers of steps", unit="number"):
        for noise, results in _results(pipeline, originals, options, steps):
            rows.append(_judge(noise, steps, results, originals, distance))
            if steps == options.steps[-1]:
                shown[f"{noise}, {steps} steps"] = results[:8]
    variants = Code(pipeline.represent(originals[:1]).expand(options.seeds, -1))
    variety = pipeline.decode(variants, options.steps[-1], seed=options.seed, guidance=options.guidance)
    shown["one representation, several noises"] = variety.cpu()
    facts = {"images": len(images), "distance": distance.name, **asdict(options)}
    write_json({"facts": facts, "rows": [asdict(row) for row in rows]}, out / "reconstruction.json")
    render(
        "reconstruction.md", out / "reconstruction.md", rows=rows, facts=facts, title=str(pipeline.config.folder_name)
    )
    save_rows(shown, f"{pipeline.config.folder_name} · {len(images)} images", out / "reconstruction.png")
    say(f"{out / 'reconstruction.md'} and {out / 'reconstruction.png'}")
    return rows


def _results(
    pipeline: Pipeline, originals: Tensor, options: ReconstructionOptions, steps: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield, for each kind of noise, the reconstructions `(N, 3, H, W)`."""
    batches = torch.arange(len(originals)).split(options.batch_size)
    if not pipeline.has_tokens:
        codes = (pipeline.encode(originals[rows], steps, options.iterations) for rows in batches)
        decoded = [pipeline.decode(code, steps, guidance=options.guidance).cpu() for code in codes]
        yield "inverted", torch.cat(decoded)
    z = [pipeline.represent(originals[rows]) for rows in batches]
    drawn = []
    for seed in range(options.seed, options.seed + options.seeds):
        pairs = zip(z, batches, strict=True)
        images = [
            pipeline.decode(Code(part), steps, seed=seed, indices=rows.tolist(), guidance=options.guidance)
            for part, rows in pairs
        ]
        drawn.append(torch.cat(images).cpu())
    yield "random", drawn[0]
    yield f"mean of {options.seeds} random", torch.stack(drawn).mean(0)


def _judge(noise: str, steps: int, results: Tensor, originals: Tensor, distance: ImageDistance) -> Row:
    mse = (results - originals).square().mean((1, 2, 3))
    figures = (mse, psnr(results, originals), ssim(results, originals), distance(results, originals))
    return Row(noise, steps, *(Spread(float(x.mean()), float(x.std(correction=0))) for x in figures))
