"""Samples of a trained pipeline in a gallery, generated on all processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from rcg.core.console import say
from rcg.evaluation.sample_folder import SampleFolder
from rcg.evaluation.samples import GeneratedImages
from rcg.pipeline import Samples
from rcg.visual.documents import write_json
from rcg.visual.grids import save_gallery

MAX_SHOWN = 256
"""Most samples in the picture."""


def write_gallery(
    source: GeneratedImages, title: str, out: Path, accelerator: Accelerator, save_images: bool = False
) -> None:
    """Generate samples, and write gallery.png, samples.json and, if asked for, one PNG for each sample into `out`.

    Samples whose PNG files are there already are not generated again.

    Args:
        source: generates them.
        title: name of the run.
        out: folder of the results.
        accelerator: the processes that share the work; the first one writes the gallery.
        save_images: whether each sample is written as a PNG file, named by its index.

    Raises:
        UserError: samples of other settings lie in `out`, or more of them than are asked for.
    """
    processes, is_first = accelerator.num_processes, accelerator.is_main_process
    indices: Sequence[int] = range(accelerator.process_index, source.count, processes)
    shown = min(source.count, MAX_SHOWN)
    folder = SampleFolder(out / "images")
    if folder.found:  # gallery.png and samples.json speak of these images
        folder.check(source.facts, source.count)
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked
    generated = source.count
    if save_images:
        if is_first:
            folder.start(source.facts)
        generated -= len(folder.found)
        indices = folder.missing(indices, source.batch_size)
        accelerator.wait_for_everyone()

    start = time.perf_counter()
    first: list[Samples] = []
    for samples in source.generate(indices, progress=is_first):
        if save_images:
            folder.write(samples)
        elif samples.indices[0] < shown:
            first.append(samples)
    accelerator.wait_for_everyone()
    seconds = time.perf_counter() - start
    images = None if save_images else _collect(first, processes)[:shown]
    if not is_first:
        return

    pipeline, options = source.pipeline, source.options
    config, steps = pipeline.config, source.sampler.steps
    # Without a condition there is nothing to guide toward.
    guidance = 1.0 if source.guidance is None else source.guidance.scale
    labels = pipeline.labels_of(range(shown), options, generates_z=source.representations is None)
    names = [""] * shown if labels is None else [f" {pipeline.labels.names[label]}" for label in labels.tolist()]
    settings = f"seed {options.seed} · {steps} steps · guidance {guidance:g}"
    title = f"{title} · {config.name} ({config.condition}) · {settings}"
    captions = [f"{index}{name}" for index, name in enumerate(names)]
    save_gallery(folder.read(shown) if images is None else images, captions, title, out / "gallery.png")
    if generated:
        facts = {
            "num": source.count,
            "seed": options.seed,
            "steps": steps,
            "guidance": guidance,
            "precision": pipeline.precision,
            "processes": processes,
            "seconds": round(seconds, 2),
            "images_per_second": round(generated / seconds, 2),
        }
        write_json(facts, out / "samples.json")
    say(f"{out / 'gallery.png'}: {source.count} images, {generated} of them generated in {seconds:.1f} s")


def _collect(first: list[Samples], processes: int) -> Tensor:
    """Bring the samples of all processes together in the order of their indices; return their images."""
    rows = [pair for samples in first for pair in zip(samples.indices, samples.images.cpu(), strict=True)]
    rows = sorted(gather_object(rows) if processes > 1 else rows, key=lambda row: row[0])
    return torch.stack([image for _, image in rows])
