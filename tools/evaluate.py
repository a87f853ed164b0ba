"""Judge generated images: FID, IS, KID, precision, recall, distances in any encoder's space, memorisation.

accelerate launch tools/evaluate.py runs/cifar10 --num 50000                       against its training images
python tools/evaluate.py runs/cifar10 --reference VIRTUAL_imagenet256_labeled.npz  against published statistics
python tools/evaluate.py samples.npz --reference photos --encoder dinov2.yaml      files against files

An evaluation that was interrupted goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from rcg import cli, config, parallel, stages
from rcg.data import load_images
from rcg.errors import UserError
from rcg.evaluation.features import View, encoder_view, inception_view
from rcg.evaluation.judging import Evaluation, Known, given_reference, judge, sampled
from rcg.evaluation.sources import Generated, Source, of_batch, of_data, of_folder
from rcg.metrics.inception import TAPS
from rcg.pipeline import Pipeline
from rcg.representation import Representation, Transform, open_encoder

PARTS = ("train", "validation")


def main() -> None:
    """Parse the command line and evaluate."""
    parser = cli.parser_for(__doc__ or "")
    parser.add_argument("subject", type=Path, help="folder of a run, folder of images, or .npz batch (arr_0, NHWC)")
    parser.add_argument("--reference", default="train", help="train, validation, a folder of images, or .npz [train]")
    parser.add_argument("--config", help="YAML file of the experiment whose images --reference train means, for files")
    parser.add_argument("--inception", help="file of torch-fidelity's InceptionV3, or none [its own, downloaded]")
    parser.add_argument("--tap", choices=TAPS, default="2048", help="its layer; only 2048 gives a FID [2048]")
    parser.add_argument(
        "--encoder",
        action="append",
        default=[],
        help="compare in an encoder's space too: own, a YAML file with an encoder section, or YAML; may be repeated "
        "[own, where there is one]",
    )
    parser.add_argument("--num", type=cli.positive, default=5000, help="samples of a run [5000]")
    parser.add_argument("--seed", type=cli.natural, default=0, help="sample i depends on (seed, i) alone [0]")
    parser.add_argument("--generator", help="which of the run's generators, where there are several")
    parser.add_argument("--guidance", type=cli.scale, help="scale of classifier-free guidance [as configured]")
    parser.add_argument("--steps", type=cli.positive, help="network evaluations of the generator [as configured]")
    parser.add_argument("--rdm-steps", type=cli.positive, help="network evaluations of the RDM [as configured]")
    parser.add_argument("--labels", choices=("balanced", "random"), default="balanced", help="classes [balanced]")
    parser.add_argument("--batch-size", type=cli.positive, default=64, help="images drawn at a time [64]")
    cli.add_precision(parser)
    parser.add_argument("--size", type=cli.positive, help="cut pictures of a folder to this side [the first one's]")
    parser.add_argument("--resamples", type=cli.natural, default=10, help="resamples for deviations; 0: none [10]")
    parser.add_argument("--no-memorisation", action="store_true", help="do not search the training set for samples")
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
    folder, cache = out / evaluation.name, arguments.cache or out / "features"
    report = judge(evaluation, folder, cache, arguments.save_images, accelerator)
    if report is not None:
        print(report.text())
        print(f"{folder / 'report.json'}")


def _is_run(path: Path) -> bool:
    return path.is_dir() and (any(path.glob("*/model.safetensors")) or (path / "generator.safetensors").is_file())


def _plan(arguments: argparse.Namespace, accelerator: Accelerator) -> Evaluation:
    samples, origin, experiment = _subject(arguments, accelerator)
    known = None
    warnings: list[str] = []
    try:
        known = None if experiment is None else _known(experiment, accelerator)
    except UserError as error:
        if arguments.reference in PARTS:
            raise
        warnings.append(f"memorisation is not judged: {error}")
    statistics: Any = {}
    if arguments.reference in PARTS:
        if known is None:
            raise UserError(
                f"--reference {arguments.reference} needs the experiment: give --config FILE, or --reference with a "
                f"folder of images or an .npz file"
            )
        reference: Source | None = known.train if arguments.reference == "train" else known.held_out
    else:
        reference, statistics = given_reference(Path(arguments.reference), samples.size)
    views = _views(arguments, samples, origin, accelerator, warnings)
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
        None if arguments.no_memorisation else known,
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
    if experiment is None and (path / arm / stages.CONFIG).is_file():
        experiment = config.load(path / arm / stages.CONFIG).model_copy(update={"run": path})
    how = {"guidance": arguments.guidance, "steps": arguments.steps, "rdm_steps": arguments.rdm_steps}
    how |= {"labels": arguments.labels}
    samples = Generated(pipeline, arguments.num, arguments.seed, how, arguments.batch_size)
    return samples, {"run": str(path), "generator": arm}, experiment


def _known(experiment: Any, accelerator: Accelerator) -> Known:
    with accelerator.main_process_first():
        split = load_images(experiment.data)
    return Known(of_data(split.train, "training"), of_data(split.validation, "held-out"))


def _views(
    arguments: argparse.Namespace,
    samples: Source,
    origin: dict[str, Any],
    accelerator: Accelerator,
    warnings: list[str],
) -> list[View]:
    """Open the networks in whose features images are compared; one that nobody asked for may be missing."""
    found, device = list[View](), accelerator.device
    if arguments.inception != "none":
        try:
            with accelerator.main_process_first():
                path = arguments.inception and Path(arguments.inception)
                found.append(inception_view(path, arguments.tap, device))
        except UserError as error:
            if arguments.inception is not None:
                raise
            warnings.append(f"no FID: {error}; name a file with --inception FILE")
    for text in arguments.encoder or (["own"] if isinstance(samples, Generated) else []):
        try:
            found.append(_encoder(text, samples, origin, device))
        except UserError as error:
            if arguments.encoder:
                raise
            warnings.append(f"no comparison in the space of the run's encoder: {error}")
    if not found:
        raise UserError(f"there is nothing to compare images with ({'; '.join(warnings)})")
    return found


def _encoder(text: str, samples: Source, origin: dict[str, Any], device: Any) -> View:
    if text == "own":
        if not isinstance(samples, Generated) or "run" not in origin:
            raise UserError("--encoder own is the encoder of a run, but files are judged: name a YAML file")
        cond = samples.pipeline.generator.cond if sampled(samples) else None
        representation = stages.run_representation(Path(origin["run"]), origin["generator"], cond)
        name: Any = representation.encoder.config
        return encoder_view(f"own-{name.name}", representation, device)
    section, size = config.parse_encoder(text)
    representation = Representation(open_encoder(section, size or samples.size), Transform("none"))
    return encoder_view(section.name, representation, device)


if __name__ == "__main__":
    main()
