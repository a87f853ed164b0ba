"""Measure editing on handwritten digits, by judges that the run does not know.

python docs/editing.py pictures runs/digits --out digits     20 pictures of each digit, and slants.csv: for editing.md
python docs/editing.py edits runs/digits                     what edits change, with an image's own noise and without
python docs/editing.py few-shot runs/digits                  samples like 20 examples of each digit

The judges are support vector machines that saw the pixels of the training images (scikit-learn's SVC, C = 10), and the
slant of the ink by its second moments. Edited are validation images.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rcg import cli
from rcg.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from rcg.data.images import Split

STRENGTHS = {"is a 1": (0.0, 0.2, 0.4, 0.6, 0.8), "is slanted": (-0.8, -0.4, 0.0, 0.4, 0.8)}
"""Of the edits; what is no 1 cannot become less of a 1."""
UNLABELED = 1000
"""Representations that stand for images without a label."""


def main() -> None:
    """Parse the command line and measure."""
    parser = cli.parser_for(__doc__)
    parser.add_argument("subject", choices=("pictures", "edits", "few-shot"))
    cli.add_run(parser)
    cli.add_number(parser, 100, "number of images to edit, or of representations to choose from")
    parser.add_argument("--examples", type=cli.whole(2, 100), default=20, help="examples of each digit [20]")
    parser.add_argument("--positive-only", action="store_true", help="without examples of the other digits")
    parser.add_argument("--steps", type=cli.count, default=100, help="network evaluations of an edit [100]")
    cli.add(parser, "--seed")
    parser.add_argument("--out", type=cli.path, help="folder of the pictures")
    cli.main(parser, measure)


def measure(arguments: argparse.Namespace) -> None:
    """Write pictures, or print figures."""
    from rcg.data.images import load_images
    from rcg.encoding.run_folder import RunFolder

    run = RunFolder(arguments.run)
    experiment = run.encoder.experiment()
    if experiment is None or experiment.data.name != "digits":
        raise UserError(f"{run.path} is no run of digits: train configs/digits.yaml first")
    subjects = {"pictures": write_pictures, "edits": measure_edits, "few-shot": measure_few_shot}
    subjects[arguments.subject](arguments, load_images(experiment.data))


def write_pictures(arguments: argparse.Namespace, split: Split) -> None:
    """Write images as train/DIGIT/INDEX.png and validation/DIGIT/INDEX.png, and a table of the slants of all."""
    from rcg.visual.grids import save_image

    out = arguments.out or Path("digits")
    for name, images in (("train", split.train), ("validation", split.validation)):
        written = [0] * len(images.classes)
        for position, index in enumerate(images.indices.tolist()):
            label = int(images.label(position))
            if written[label] < arguments.examples:
                save_image(images[position]["image"], out / name / images.classes[label] / f"{index:04d}.png")
                written[label] += 1
    slants = slant(pixels(split.train))
    with (out / "slants.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "slant"])
        table.writerows(zip(split.train.indices.tolist(), slants.tolist(), strict=True))


def measure_edits(arguments: argparse.Namespace, split: Split) -> None:
    """Print how a measured attribute follows the strength of an edit, and how many images stay the digit they were."""
    import torch

    from rcg.distributed.launch import launch
    from rcg.editing.attributes import from_classes
    from rcg.editing.directions import fit_direction
    from rcg.editing.edit import EditOptions, along_z, edit_images, monotonicity
    from rcg.editing.encoded import encode_training_images
    from rcg.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(arguments.run)
    images, space = encode_training_images(pipeline, launch()), pipeline.representation.space
    is_one, digit = (judge(split, labels) for labels in (split.train.labels == 1, split.train.labels))
    slanted = fit_direction("slanted", images.z, slant(pixels(split.train)), space)
    directions = {
        "is a 1": (from_classes(images, space, ["1"])[0], is_one.decision_function),
        "is slanted": (slanted, lambda x: slant(torch.from_numpy(x).view(-1, 16, 16)).numpy()),
    }
    chosen = torch.nonzero(split.validation.labels != 1).flatten()[: arguments.count]
    originals = torch.stack([split.validation[int(position)]["image"] for position in chosen])
    before = digit.predict(flat(originals))
    print(f"{len(originals)} validation images, {arguments.steps} steps")
    print("attribute | strengths | noise | rank correlation | measured at each strength | same digit at each strength")
    for name, (direction, measured) in directions.items():
        strengths = STRENGTHS[name]
        for own_noise in (True, False):
            options = EditOptions(strengths, arguments.steps, arguments.seed, own_noise=own_noise)
            edited = edit_images(pipeline, originals, along_z(pipeline, direction, options), options)
            by_strength = [flat(part) for part in edited.images.unbind(1)]
            values = torch.stack([torch.as_tensor(measured(part)) for part in by_strength], dim=1)
            same = [float((digit.predict(part) == before).mean()) for part in by_strength]
            cells = [
                name,
                numbers(strengths),
                "own" if own_noise else "random",
                f"{monotonicity(strengths, values):.3f}",
            ]
            print(" | ".join([*cells, numbers(values.mean(0).tolist()), numbers(same)]), flush=True)


def measure_few_shot(arguments: argparse.Namespace, split: Split) -> None:
    """Print what share of generated representations is accepted as like examples, and how many become their digit.

    All digits choose from the same representations, as `tools/sample.py --like` does from fresh ones.
    """
    import torch

    from rcg.core.rng import SampleNoise
    from rcg.editing.few_shot import like_examples
    from rcg.pipeline import Pipeline, SamplingOptions

    pipeline, options = Pipeline.from_pretrained(arguments.run), SamplingOptions(seed=arguments.seed)
    digit, labels = judge(split, split.train.labels), split.train.labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(arguments.seed))
    rows = {k: order[labels[order] == k][: arguments.examples] for k in range(10)}
    examples = {k: pipeline.represent(torch.stack([split.train[int(i)]["image"] for i in rows[k]])) for k in rows}
    unlabeled = pipeline.generate_z(range(UNLABELED), SamplingOptions(seed=arguments.seed + 1))
    indices = list(range(arguments.count))
    generated = pipeline.generate_z(indices, options)
    images = pipeline.sample(len(indices), options, z=generated, output="tensor")
    found = torch.from_numpy(digit.predict(flat(images)))
    results = []
    print(f"{len(indices)} generated representations, {arguments.examples} examples of each digit")
    print("digit | generated | accepted | of that digit")
    for k in rows:
        others = torch.cat(
            [examples[other] for other in rows if other != k and not arguments.positive_only] or [unlabeled[:0]]
        )
        probability = like_examples(examples[k], others, unlabeled)
        accepted = SampleNoise(arguments.seed, indices, "acceptance").uniform(()) < probability(generated)
        shares = [(found == k).float().mean(), accepted.float().mean(), (found[accepted] == k).float().mean()]
        results.append(torch.stack(shares))
        print(" | ".join([str(k), *(f"{share:.1%}" for share in shares)]), flush=True)
    print(" | ".join(["mean", *(f"{share:.1%}" for share in torch.stack(results).mean(0))]))


def pixels(images: Sequence[dict[str, Tensor]]) -> Tensor:
    """Return the ink `(N, 16, 16)` of gray images."""
    import torch

    return torch.stack([images[position]["image"].mean(0) for position in range(len(images))])


def flat(image: Tensor):
    """Return images `(N, 3, 16, 16)` as a judge reads them from files: 8 bits, gray, `(N, 256)`."""
    return (image * 255).round().div(255).mean(1).flatten(1).numpy()


def judge(split: Split, labels: Tensor):
    """Return a classifier of the pixels of the training images."""
    from sklearn.svm import SVC

    return SVC(C=10).fit(pixels(split.train).flatten(1).numpy(), labels.numpy())


def slant(ink: Tensor) -> Tensor:
    """Return by how many columns ink `(N, H, W)` leans to the right per row upward, `(N,)`, from its second moments."""
    import torch

    weight = ink / ink.sum((1, 2), keepdim=True)
    rows, columns = torch.meshgrid(*(torch.arange(float(side)) for side in ink.shape[1:]), indexing="ij")
    y, x = (axis - (weight * axis).sum((1, 2), keepdim=True) for axis in (rows, columns))
    return -(weight * x * y).sum((1, 2)) / (weight * y * y).sum((1, 2))


def numbers(values: Sequence[float]) -> str:
    """Return numbers in a cell of a table."""
    return ", ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    main()
