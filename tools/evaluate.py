"""Judge generated images: FID, IS, KID, precision, recall, distances in any encoder's space, memorization.

accelerate launch tools/evaluate.py runs/cifar10 --num 50000                       against its training images
python tools/evaluate.py runs/cifar10 --reference VIRTUAL_imagenet256_labeled.npz  against published statistics
python tools/evaluate.py samples.npz --reference photos --encoder dinov2.yaml      files against files
python tools/evaluate.py runs/cifar10 --guidance 1 1.5 2 3 --num 1000              which scale is best, in one table

An evaluation that was interrupted goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from rcg import cli, config
from rcg.core.errors import UserError
from rcg.distributed import launch as parallel
from rcg.encoding.run_folder import CONFIG
from rcg.encoding.workspace import run_representation
from rcg.evaluation.evaluate import Evaluation, judge, sampled
from rcg.evaluation.extractors import PARTS, Judges, chosen_reference, known_images
from rcg.evaluation.features import View, own_view
from rcg.evaluation.guidance_sweep import CURVES, SAMPLES, Sweep, at_each, draw_samples, name_of
from rcg.evaluation.report import Report
from rcg.evaluation.samples import Generated, Given, Source, of_batch, of_folder
from rcg.pipeline import Pipeline


def main() -> None:
    """Parse the command line and evaluate."""
    parser = cli.parser_for(__doc__ or "")
    parser.add_argument("subject", type=Path, help="folder of a run, folder of images, or .npz batch (arr_0, NHWC)")
    parser.add_argument(
        "--guidance",
        type=cli.scale,
        nargs="+",
        metavar="SCALE",
        help="of classifier-free guidance; several are compared [as configured]",
    )
    cli.add_judges(parser)
    parser.add_argument("--config", help="YAML file of the experiment whose images --reference train means, for files")
    parser.add_argument("--generator", help="which of the run's generators, where there are several")
    parser.add_argument("--size", type=cli.positive, help="cut pictures of a folder to this side [the first one's]")
    parser.add_argument(
        "--representations", type=Path, help="file of tools/sample_rdm.py to paint from, row i for sample i"
    )
    parser.add_argument("--no-memorization", action="store_true", help="do not search the training set for samples")
    parser.add_argument("--save-images", action="store_true", help="write the samples as PNG files too")
    parser.add_argument("--out", type=Path, help="folder for reports and features [RUN/evaluation]")
    parser.add_argument("--cache", type=Path, help="folder for features, to share references [OUT/features]")
    cli.main(parser, evaluate)


def evaluate(arguments: argparse.Namespace) -> None:
    """Judge, and print the report."""
    accelerator = parallel.start()
    out = arguments.out or (
        arguments.subject / "evaluation" if _is_run(arguments.subject) else Path(f"{arguments.subject}-evaluation")
    )
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file, not a folder")
    evaluation = _plan(arguments, accelerator)
    scales = sorted(set(arguments.guidance or []))
    if len(scales) > 1:
        _sweep(at_each(evaluation, scales), arguments, out, accelerator)
    else:
        report = _judge(evaluation, arguments, out, accelerator)
        if report is not None:
            print(report.text())
            print(f"{out / evaluation.name / 'report.json'}")


def _judge(evaluation: Evaluation, arguments: argparse.Namespace, out: Path, accelerator: Accelerator) -> Report | None:
    cache = arguments.cache or out / "features"
    return judge(evaluation, out / evaluation.name, cache, arguments.save_images, accelerator)


def _sweep(
    evaluations: dict[float, Evaluation], arguments: argparse.Namespace, out: Path, accelerator: Accelerator
) -> None:
    """Judge at each scale of guidance, and say at which one distances are lowest."""
    found = {}
    for number, (scale, evaluation) in enumerate(evaluations.items(), 1):
        if accelerator.is_main_process:
            print(f"[{number}/{len(evaluations)}] guidance {scale:g}", flush=True)
        found[scale] = _judge(evaluation, arguments, out, accelerator)
    reports = {scale: report for scale, report in found.items() if report is not None}
    if accelerator.is_main_process:
        first = next(iter(evaluations.values()))
        folder = out / name_of(evaluations)
        title = f"{arguments.subject}: {first.origin['generator']}, {len(first.samples)} samples at each guidance"
        sweep = Sweep(reports, [(view.name, view.distance) for view in first.views])
        sweep.write(title, folder)
        draw_samples(evaluations, title, folder / SAMPLES)
        print(sweep.text(title))
        print(f"look at {folder / CURVES} and {folder / SAMPLES}; then --guidance, or generator.guidance.scale")


def _is_run(path: Path) -> bool:
    return path.is_dir() and (any(path.glob("*/model.safetensors")) or (path / "generator.safetensors").is_file())


def _plan(arguments: argparse.Namespace, accelerator: Accelerator) -> Evaluation:
    samples, origin, experiment = _subject(arguments, accelerator)
    known = None
    warnings: list[str] = []
    try:
        known = None if experiment is None else known_images(experiment.data, accelerator)
    except UserError as error:
        if arguments.reference in PARTS:
            raise
        warnings.append(f"memorization is not judged: {error}")
    reference, statistics = chosen_reference(arguments.reference, known, samples.size)
    judges = Judges(arguments.inception, arguments.tap, arguments.encoder)
    views = judges.views(_own(samples, origin, accelerator), samples.size, accelerator, warnings)
    own = next((view.name for view in views if view.name.startswith("own-")), None)
    return Evaluation(
        samples,
        origin,
        views,
        reference,
        arguments.reference,
        statistics,
        own,
        own is not None and sampled(samples),
        None if arguments.no_memorization else known,
        arguments.resamples,
        warnings,
    )


def _subject(arguments: argparse.Namespace, accelerator: Accelerator) -> tuple[Source, dict[str, Any], Any]:
    """Open what is to be judged; returns what the report says of it, and its experiment where that is known."""
    experiment = None if arguments.config is None else config.load(arguments.config)
    path = arguments.subject
    if not path.exists():
        raise UserError(f"there is no {path}: a folder of a run, a folder of images or an .npz file is expected")
    if not _is_run(path):
        return (of_folder(path, arguments.size) if path.is_dir() else of_batch(path)), {}, experiment
    local = (path / "generator.safetensors").is_file()
    pipeline = (Pipeline.from_pretrained(path) if local else Pipeline.from_run(path, arguments.generator)).to(
        accelerator.device, arguments.precision
    )
    generator: Any = pipeline.generator.config
    arm = arguments.generator or generator.arm
    if experiment is None and (path / arm / CONFIG).is_file():
        experiment = config.load(path / arm / CONFIG).model_copy(update={"run": path})
    guidance = arguments.guidance[0] if arguments.guidance else None
    how = {"guidance": guidance, "steps": arguments.steps, "rdm_steps": arguments.rdm_steps}
    how |= {"labels": arguments.labels}
    file = arguments.representations
    told = None if file is None else Given(file, pipeline.generator.cond, arguments.num)
    samples = Generated(pipeline, arguments.num, arguments.seed, how, arguments.batch_size, told)
    return samples, {"run": str(path), "generator": arm}, experiment


def _own(samples: Source, origin: dict[str, Any], accelerator: Accelerator) -> Callable[[], View] | None:
    """Return what opens the encoder of the run that is judged."""
    if not isinstance(samples, Generated):
        return None
    cond = samples.pipeline.generator.cond if sampled(samples) else None
    return lambda: own_view(run_representation(Path(origin["run"]), origin["generator"], cond), accelerator.device)


if __name__ == "__main__":
    main()
