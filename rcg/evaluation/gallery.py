"""Samples of a trained pipeline in a gallery, generated on all processes."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from rcg.core.console import say
from rcg.evaluation.samples import GeneratedImages
from rcg.pipeline import Samples
from rcg.visual.documents import write_json
from rcg.visual.grids import save_gallery, save_image

MAX_SHOWN = 256
"""Most samples in the picture."""


def write_gallery(
    source: GeneratedImages, title: str, out: Path, accelerator: Accelerator, save_images: bool = False
) -> None:
    """Generate samples, and write gallery.png, samples.json and, if asked for, one PNG for each sample into `out`.

    Args:
        source: generates them.
        title: name of the run.
        out: folder of the results.
        accelerator: the processes that share the work; the first one writes the gallery.
        save_images: whether each sample is written as a PNG file, named by its index.
    """
    pipeline, options, processes = source.pipeline, source.options, accelerator.num_processes
    indices = range(accelerator.process_index, source.count, processes)
    start = time.perf_counter()
    shown: list[Samples] = []
    for samples in source.generate(indices, progress=accelerator.is_main_process):
        if save_images:
            for index, image in zip(samples.indices, samples.images, strict=True):
                save_image(image, out / "images" / f"{index:06d}.png")
        if len(shown) * source.batch_size * processes < MAX_SHOWN:
            shown.append(samples)
    seconds = time.perf_counter() - start
    images, captions = _collect(shown, pipeline.labels.names, processes)
    if not accelerator.is_main_process:
        return

    config = pipeline.config
    steps = config.sampler.with_steps(options.steps).steps
    # Without a condition there is nothing to guide toward.
    guidance = 1.0 if source.guidance is None else source.guidance.scale
    settings = f"seed {options.seed} · {steps} steps · guidance {guidance:g}"
    title = f"{title} · {config.name} ({config.condition}) · {settings}"
    save_gallery(images[:MAX_SHOWN], captions[:MAX_SHOWN], title, out / "gallery.png")
    facts = {
        "num": source.count,
        "seed": options.seed,
        "steps": steps,
        "guidance": guidance,
        "precision": pipeline.precision,
        "processes": processes,
        "seconds": round(seconds, 2),
        "images_per_second": round(source.count / seconds, 2),
    }
    write_json(facts, out / "samples.json")
    say(f"{out / 'gallery.png'}: {source.count} images in {seconds:.1f} s")


def _collect(shown: list[Samples], labels: tuple[str, ...], processes: int) -> tuple[Tensor, list[str]]:
    """Bring the samples of all processes together in the order of their indices; return images and captions."""
    rows: list[tuple[int, Tensor, str]] = []
    for samples in shown:
        names = [""] * len(samples.indices)
        if samples.labels is not None:
            names = [f" {labels[label]}" for label in samples.labels.tolist()]
        rows += zip(samples.indices, samples.images.cpu(), names, strict=True)
    rows = sorted(gather_object(rows) if processes > 1 else rows, key=lambda row: row[0])
    return torch.stack([image for _, image, _ in rows]), [f"{index}{name}" for index, _, name in rows]
