"""Draw images from a trained run: noise -> representation -> image.

python tools/sample.py runs/digits --num 64 --seed 0 --out runs/digits/gallery
torchrun --nproc_per_node 8 tools/sample.py runs/imagenet --num 50000 --save-images --out samples
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rcg import cli
from rcg.core.checkpoint import atomic
from rcg.core.errors import UserError
from rcg.distributed import launch as parallel
from rcg.pipeline import Pipeline, Samples, read_representations
from rcg.visual.grids import save_gallery, save_image

SHOWN = 256


def main() -> None:
    """Parse the command line and sample."""
    parser = cli.parser_for(__doc__ or "")
    parser.add_argument("run", type=Path, help="folder of a run, or of save_pretrained")
    parser.add_argument("--num", type=cli.positive, default=64, help="how many images [64]")
    parser.add_argument("--seed", type=cli.natural, default=0, help="sample i depends on (seed, i) alone [0]")
    parser.add_argument("--out", type=Path, required=True, help="folder for gallery.png, samples.json and images")
    parser.add_argument("--generator", help="which of the run's generators, where there are several")
    parser.add_argument("--guidance", type=cli.scale, help="scale of classifier-free guidance [as configured]")
    parser.add_argument("--steps", type=cli.positive, help="network evaluations of the generator [as configured]")
    parser.add_argument("--rdm-steps", type=cli.positive, help="network evaluations of the RDM [as configured]")
    parser.add_argument(
        "--representations", type=Path, help="file of tools/sample_rdm.py to paint from, row i for sample i"
    )
    parser.add_argument("--batch-size", type=cli.positive, default=64, help="images drawn at a time [64]")
    cli.add_precision(parser)
    parser.add_argument("--save-images", action="store_true", help="also write one PNG per sample, named by its index")
    parser.add_argument("--class", dest="label", type=cli.natural, help="the class, for models trained on classes")
    cli.main(parser, sample)


def sample(arguments: argparse.Namespace) -> None:
    """Draw this process's share of the samples; the main process writes the gallery."""
    accelerator = parallel.start()
    local = (arguments.run / "generator.safetensors").is_file()
    load = Pipeline.from_pretrained if local else lambda run: Pipeline.from_run(run, arguments.generator)
    pipeline = load(arguments.run).to(accelerator.device, arguments.precision)
    if arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"--out {arguments.out} is a file, not a folder")
    mine = range(accelerator.process_index, arguments.num, accelerator.num_processes)
    how = {"guidance": arguments.guidance, "steps": arguments.steps}
    how |= {"rdm_steps": arguments.rdm_steps, "label": arguments.label}
    if arguments.representations is not None:
        how |= {"z": read_representations(arguments.representations, pipeline.generator.cond, arguments.num)}
    start = time.perf_counter()
    shown: list[Samples] = []
    for drawn in pipeline.batches(mine, arguments.batch_size, arguments.seed, accelerator.is_main_process, **how):
        if arguments.save_images:
            for index, image in zip(drawn.indices, drawn.images, strict=True):
                save_image(image, arguments.out / "images" / f"{index:06d}.png")
        if len(shown) * arguments.batch_size * accelerator.num_processes < SHOWN:
            shown.append(drawn)
    seconds = time.perf_counter() - start
    images, captions = _collect(shown, pipeline, accelerator.num_processes)
    if accelerator.is_main_process:
        config: Any = pipeline.generator.config
        steps = arguments.steps or config.sampler.steps
        guidance = config.guidance.scale if arguments.guidance is None else arguments.guidance
        guidance = 1.0 if config.condition == "none" else guidance  # there is nothing to be guided towards
        title = f"{arguments.run} · {config.name} ({config.condition}) · seed {arguments.seed} · {steps} steps"
        save_gallery(
            images[:SHOWN], captions[:SHOWN], f"{title} · guidance {guidance:g}", arguments.out / "gallery.png"
        )
        facts = {"num": arguments.num, "seed": arguments.seed, "steps": steps, "guidance": guidance}
        facts |= {"precision": pipeline.precision, "processes": accelerator.num_processes}
        facts |= {"seconds": round(seconds, 2), "images_per_second": round(arguments.num / seconds, 2)}
        with atomic(arguments.out / "samples.json") as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n")
        tqdm.write(f"{arguments.out / 'gallery.png'}: {arguments.num} images in {seconds:.1f} s")


def _collect(shown: list[Samples], pipeline: Pipeline, processes: int) -> tuple[torch.Tensor, list[str]]:
    """Bring the samples of all processes together in the order of their indices."""
    from accelerate.utils import gather_object

    rows = [
        (index, image.cpu(), "" if drawn.labels is None else f" {pipeline.classes[int(drawn.labels[i])]}")
        for drawn in shown
        for i, (index, image) in enumerate(zip(drawn.indices, drawn.images, strict=True))
    ]
    rows = sorted(gather_object(rows) if processes > 1 else rows, key=lambda row: row[0])
    return torch.stack([image for _, image, _ in rows]), [f"{index}{label}" for index, _, label in rows]


if __name__ == "__main__":
    main()
