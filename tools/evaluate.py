"""Evaluate generated images: FID, IS, KID, precision, recall, distances in any encoder's space, memorization.

accelerate launch tools/evaluate.py runs/cifar10 --num 50000                       against its training images
python tools/evaluate.py runs/cifar10 --reference VIRTUAL_imagenet256_labeled.npz  against published statistics
python tools/evaluate.py samples.npz --reference photos --encoder dinov2.yaml      files against files
python tools/evaluate.py runs/cifar10 --guidance 1 1.5 2 3 --num 1000              compare scales of guidance

An evaluation that was interrupted goes on where it stopped when the same command is given again.
"""

import argparse
from pathlib import Path

from rcg import cli


def main() -> None:
    """Parse the command line and evaluate."""
    parser = cli.parser_for(__doc__)
    text = "folder of a run, or of save_pretrained, owner/name on the hub, folder of images, or .npz (arr_0, NHWC)"
    parser.add_argument("subject", type=cli.path, help=text)
    text = "scale of guidance; several are compared [as configured]"
    parser.add_argument("--guidance", type=cli.guidance_scale, nargs="+", metavar="SCALE", help=text)
    cli.add_sampling(parser, num=5000)
    cli.add(parser, "--weak", "--labels", "--generator", "--representations")
    cli.add_metrics(parser)
    parser.add_argument("--config", help="YAML file of the experiment whose images --reference train means, for files")
    parser.add_argument("--size", type=cli.count, help="crop pictures of a folder to this side [the first one's]")
    text = "do not search the training set for samples"
    parser.add_argument("--no-memorization", dest="memorization", action="store_false", help=text)
    parser.add_argument("--save-images", action="store_true", help="write the samples as PNG files too")
    parser.add_argument("--out", type=cli.path, help="folder for reports and features [RUN/evaluation]")
    parser.add_argument("--cache", type=cli.path, help="folder for features, to share references [OUT/features]")
    cli.main(parser, run)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, and print the report."""
    from rcg.config import load_experiment
    from rcg.core.console import say
    from rcg.core.hub import locate, looks_remote
    from rcg.distributed.launch import launch
    from rcg.encoding.run_folder import RunFolder
    from rcg.evaluation.evaluate import evaluate
    from rcg.evaluation.extractors import MetricOptions
    from rcg.evaluation.guidance_sweep import sweep_guidance
    from rcg.evaluation.plan import EvaluationOptions, is_run, plan_evaluation

    subject = locate(arguments.subject) if looks_remote(arguments.subject) else arguments.subject
    accelerator, folder = launch(), RunFolder(subject)
    default = cli.results_of(arguments.subject).evaluation if is_run(folder) else Path(f"{folder.path}-evaluation")
    out = cli.output_folder(arguments.out or default)
    cache = cli.output_folder(arguments.cache or out / "features")

    scales = sorted(set(arguments.guidance or []))
    arguments.guidance = max(scales, key=lambda scale: abs(scale - 1), default=None)
    experiment = load_experiment(arguments.config) if arguments.config else None
    plan, metrics = cli.sampling_plan(arguments), cli.create(MetricOptions, arguments)
    options = cli.create(EvaluationOptions, arguments, plan=plan, metrics=metrics, experiment=experiment)
    evaluation = plan_evaluation(folder, options, accelerator)
    if len(scales) > 1:
        sweep_guidance(evaluation, scales, out, cache, accelerator, arguments.save_images)
    elif evaluate(evaluation, out / evaluation.name, cache, accelerator, arguments.save_images):
        say((out / evaluation.name / "report.md").read_text(encoding="utf-8"))
        say(f"{out / evaluation.name / 'report.json'}")


if __name__ == "__main__":
    main()
