"""The plan: a pure function of what a folder holds, how fast this machine is, and how many minutes there are."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rcg.core.errors import UserError
from rcg.training.planning.folder import FolderFacts

WIDTHS = (96, 160, 256, 384)
"""Widths of the generator that a plan chooses from."""
MOST_STEPS = 2000
"""Steps that a wider generator has to fit before it is chosen: a short training gains more from steps."""
LEAST_STEPS = 60
"""Fewest steps of a training that is worth its start."""
PIXELS = 64
"""Largest side at which the generator works on pixels; above, an autoencoder makes images smaller."""
FEW, TOO_FEW = 1000, 100
"""Training images below which a plan warns, and below which it promises nothing."""
EVALUATIONS = 5
"""Evaluations of the generator."""
JUDGING = 1.05
"""Time of a step, with that of judging samples in evaluations (`rcg.training.clock`), in times without."""
SHOWN, SAMPLES = 32, 64
"""Images of the grid of an evaluation, and of the gallery."""
ENCODING = 0.25
"""Largest share of the minutes for reading and encoding images; of a larger folder, a part is used."""
SHARES = {"encoder": 0.40, "rdm": 0.10, "generator": 0.50}
"""Shares of the training time."""
SHARES_WITH_AUTOENCODER = {"encoder": 0.25, "autoencoder": 0.35, "rdm": 0.05, "generator": 0.35}
TOOLS = {"encoder": "train_encoder", "rdm": "train_rdm", "autoencoder": "train_autoencoder",
         "latents": "cache", "generator": "train_pixel"}  # fmt: skip
"""The tool of each stage, in the order of the commands."""
MOST_EPOCHS = {"encoder": 200, "autoencoder": 400}
"""Passes over the images after which a stage gains little; what is left goes to the generator."""
RDM_MOST_STEPS = 20_000
NOISY = 1.15
"""Slowdown by other programs from which on a plan warns."""
CURVE = ((1 / 6, 1.61, 1.52), (1 / 3, 1.18, 1.17), (1 / 2, 1.07, 1.09), (2 / 3, 1.02, 1.18), (5 / 6, 1.0, 1.0))
"""Share of the generator's training; validation loss and FD there, as multiples of those at the last share."""
CURVE_SOURCE = "one run of configs/digits.yaml (docs/planning.md)"


@dataclass(frozen=True)
class Speeds:
    """How fast this machine is when nothing else runs, in seconds.

    Attributes:
        start: from a command to its first line.
        steps: a step of each stage but the generator.
        generators: a step of the generator, by its width.
        fixed: what each stage takes besides steps and images: opening, one evaluation, checkpoints.
        encode: to read and encode one view of an image.
        latent: the same by the autoencoder; 0 without one.
        sample: to generate one image, by the width of the generator.
        slowdown: how many times as long all took while it was measured, because other programs ran.
        machine: on what it was measured, for people.
    """

    start: float
    steps: Mapping[str, float]
    generators: Mapping[int, float]
    fixed: Mapping[str, float]
    encode: float
    latent: float
    sample: Mapping[int, float]
    slowdown: float = 1.0
    machine: str = ""


@dataclass(frozen=True)
class Stage:
    """A command of a plan, and how many minutes it will take."""

    name: str
    command: str
    minutes: float
    steps: int | None = None


@dataclass(frozen=True)
class Plan:
    """An experiment that fits into some minutes.

    Attributes:
        experiment: its values, as they are written as YAML.
        stages: the commands, in their order.
        warnings: what is doubtful about it.
        promises: whether a curve can be expected at all.
    """

    experiment: dict[str, Any]
    stages: tuple[Stage, ...]
    warnings: tuple[str, ...]
    promises: bool

    @property
    def minutes(self) -> float:
        """Minutes of all commands."""
        return sum(stage.minutes for stage in self.stages)

    def curve(self) -> Iterator[tuple[float, float, float]]:
        """Yield minutes since the first command, and loss and FD then as multiples of those at the last minute."""
        before = 0.0
        for stage in self.stages:
            if stage.name == "generator":
                for share, loss, fd in CURVE:
                    yield before + share * stage.minutes, loss, fd
            before += stage.minutes


def image_side(side: int) -> int:
    """Return the size at which images of `side` pixels are learned where nobody chose one: 64, or what they have."""
    return max(16, min(PIXELS, side // 8 * 8))


def check_size(size: int) -> None:
    """Raise `UserError` for a size that the networks of a plan cannot divide."""
    unit = 8 if size <= PIXELS else 32
    if size % unit or size < 16:
        fitting = max(16, round(size / unit) * unit)
        raise UserError(
            f"--image-size {size} cannot be cut into patches: choose a multiple of 8 up to {PIXELS}, or of 32 above, "
            f"{fitting} for example"
        )


def make_plan(facts: FolderFacts, speeds: Speeds, minutes: float, size: int, file: str) -> Plan:
    """Choose networks and steps.

    Args:
        facts: what the folder holds.
        speeds: of `experiment` at this size, on this machine.
        minutes: that all commands together may take.
        size: side of the images in pixels.
        file: name of the YAML file, for the commands.

    Raises:
        UserError: so few minutes do not pay for the start of the commands.
    """
    shares = SHARES if size <= PIXELS else SHARES_WITH_AUTOENCODER
    budget, views = 60 * minutes, 1 if facts.gray else 2
    # The encoder's evaluation encodes each image once, the RDM in all views; the generator reads images to find copies.
    latents = views * speeds.latent
    each = (2 + views) * speeds.encode + latents
    used = _fitting(facts, int(ENCODING * budget / each))
    images = used.images + used.validation
    narrow = min(speeds.generators)
    fixed = {name: speeds.start + speeds.fixed[name] for name in shares}
    if size > PIXELS:
        fixed["latents"] = speeds.start
    fixed["gallery"] = speeds.start
    shown = SHOWN * (EVALUATIONS - 1)  # one evaluation was measured with the stage
    cost = {**speeds.steps, "generator": JUDGING * speeds.generators[narrow]}
    least = LEAST_STEPS * max(cost[name] / share for name, share in shares.items())
    start = sum(fixed.values()) + (shown + SAMPLES) * speeds.sample[narrow]
    left = budget - start - images * each
    if left < least:
        needed = (start + least) / (1 - ENCODING) if used.images < facts.images else start + least + images * each
        smaller = f", or --image-size {PIXELS}" if size > PIXELS else ""
        raise UserError(
            f"{minutes:g} minutes are too few: the commands take {(budget - left) / 60:.1f} of them here before and "
            f"after training, and {LEAST_STEPS} steps of each {least / 60:.1f} more; give --minutes "
            f"{math.ceil(needed / 60)} or more{smaller}"
        )
    fixed["encoder"] += images * speeds.encode
    fixed["rdm"] += images * views * speeds.encode
    fixed["generator"] += images * speeds.encode
    if size > PIXELS:
        fixed["latents"] += images * latents

    steps: dict[str, int] = {}
    rest, train = left, training_images(used)
    for name, share in shares.items():
        if name != "generator":
            most = RDM_MOST_STEPS
            if name in MOST_EPOCHS:
                most = max(300, MOST_EPOCHS[name] * train // batch_size(train, name))
            steps[name] = min(most, int(share * left / cost[name]))
            rest -= steps[name] * cost[name]
    for width in sorted(speeds.generators, reverse=True):
        cost["generator"] = JUDGING * speeds.generators[width]
        wider = (shown + SAMPLES) * (speeds.sample[width] - speeds.sample[narrow])
        steps["generator"] = int((rest - wider) / cost["generator"])
        if steps["generator"] >= MOST_STEPS:
            break
    fixed["generator"] += shown * speeds.sample[width]
    fixed["gallery"] += SAMPLES * speeds.sample[width]

    values = experiment(used, size, width, steps)
    if used.images < facts.images:
        values["data"]["limit"] = used.images
    commands = {name: f"tools/{tool}.py {shlex.quote(file)}" for name, tool in TOOLS.items() if name in fixed}
    commands["gallery"] = f"tools/sample.py {shlex.quote(values['run'])} --num {SAMPLES}"
    stages = []
    for name, command in commands.items():
        seconds = fixed[name] + steps.get(name, 0) * cost.get(name, 0)
        stages.append(Stage(name, f"python {command}", seconds / 60, steps.get(name)))
    return Plan(values, tuple(stages), tuple(_warnings(facts, used, speeds, size)), train >= TOO_FEW)


def _fitting(facts: FolderFacts, most: int) -> FolderFacts:
    """Return a folder of which at most so many pictures of a split are used, but not too few of them."""
    most = max(TOO_FEW, most)
    return replace(facts, images=min(facts.images, most), validation=min(facts.validation, most))


def experiment(facts: FolderFacts, size: int, width: int, steps: Mapping[str, int]) -> dict[str, Any]:
    """Return the values of an experiment; `steps` of its stages."""
    train = training_images(facts)
    moved: dict[str, Any] = {"size": 24} if size == 32 else {}
    moved["crop"] = [0.3, 1.0]
    if facts.gray:
        moved = {"crop": [0.6, 1.0], "ratio": [0.8, 1.25], "flip": False, "rotate": 10, "jitter": 0.5, "gray": 0}
    values: dict[str, Any] = {
        "run": f"runs/{facts.root.resolve().name or 'plan'}",
        "data": {"name": "image_folder", "root": str(facts.root), "image_size": size, "flip": not facts.gray},
        "encoder": {
            "name": "moco_v3",
            "arch": "resnet18",
            "width": 32,
            "depth": 1,
            "projector_hidden": 512,
            "projector_dim": 128,
            "train": {
                **_training(steps["encoder"], batch_size(train, "encoder"), 2e-3),
                "momentum": 0.95,
                "predictor": 512,
                "augment": moved,
            },
        },
        "rdm": {"width": 256, "depth": 6, "train": _training(steps["rdm"], batch_size(train, "rdm"), 1e-3, ema=0.999)},
        "generator": {
            "name": "dit",
            "width": width,
            "depth": 6,
            "heads": width // 32,
            "patch": 4 if size <= 32 else 8 if size <= PIXELS else 2,
            "process": {"name": "gaussian", "predict": "x0"},
            "sampler": {"name": "unipc", "steps": 10},
            "guidance": {"scale": 2.0},
            "train": {
                **_training(steps["generator"], batch_size(train, "generator"), 1e-3, ema=0.998),
                "evaluate_every": max(1, math.ceil(steps["generator"] / EVALUATIONS)),
            },
        },
    }
    if not facts.validation:
        values["data"]["validation"] = validation_share(facts.images)
    if size > PIXELS:
        halvings = round(math.log2(size / 16))
        values["generator"]["autoencoder"] = {
            "name": "kl",
            "width": 32,
            "multipliers": [min(4, 2**i) for i in range(halvings + 1)],
            "blocks": 1,
            "attention": [],
            "channels": 4,
            "train": {
                **_training(steps["autoencoder"], batch_size(train, "autoencoder"), 8e-4, ema=0.995),
                "perceptual_weight": 0.25,
                "adversarial_start": steps["autoencoder"] // 2,
                "discriminator_width": 32,
            },
        }
    return values


def validation_share(images: int) -> float:
    """Return the share of images that is held out: a tenth, or as many as judging samples needs."""
    return round(min(0.25, max(0.1, 64 / images)), 3)


def training_images(facts: FolderFacts) -> int:
    """Return about how many images are trained on."""
    return facts.images if facts.validation else facts.images - round(validation_share(facts.images) * facts.images)


def batch_size(train: int, stage: str) -> int:
    """Return the batch of a stage for so many training images."""
    most = {"encoder": 128, "rdm": 256, "autoencoder": 32, "generator": 64}[stage]
    return max(2, min(most, 2 ** int(math.log2(max(2, train)))))


def _training(steps: int, batch: int, lr: float, ema: float | None = None) -> dict[str, Any]:
    values = {"steps": steps, "batch_size": batch, "lr": lr, "warmup": min(200, steps // 10), "schedule": "cosine"}
    values["save_every"] = max(1, min(1000, math.ceil(steps / 3)))
    if ema is not None:
        # An average that reaches back no further than a quarter of a short training.
        values["ema_decay"] = round(min(ema, 1 - 4 / max(steps, 8)), 4)
    return values


def _warnings(facts: FolderFacts, used: FolderFacts, speeds: Speeds, size: int) -> Iterator[str]:
    train = training_images(used)
    if train < TOO_FEW:
        yield (
            f"{facts.images} pictures are too few to learn from: expect copies of them or blots, and no curve below; "
            f"{TOO_FEW} are the least, {FEW} and more are better"
        )
    elif train < FEW:
        yield f"{train} training images are few: watch `copies` in the log, and stop when it rises"
    if facts.side < size:
        yield (
            f"the pictures have {facts.side} px in the median and are enlarged to {size}: --image-size "
            f"{image_side(facts.side)} fits"
        )
    if used.images < facts.images:
        yield (
            f"{used.images} of {facts.images} pictures are used, drawn at random: to encode all takes more than a "
            f"quarter of the minutes"
        )
    if facts.gray:
        yield "gray pictures are taken for signs and not mirrored: data.flip=true mirrors them"
    if speeds.slowdown > NOISY:
        yield (
            f"other programs slowed this machine down while it was measured: beside them, the commands take about "
            f"{speeds.slowdown:.1f} times as long as it says here"
        )
