"""Training of a shift of h for one property (Asyrp, Kwon, Jeong, Uh, ICLR 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import TrainConfig, load_encoder_section
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import EvalResult, Level, Prediction, Task
from rcg.core.errors import Stopped, UserError
from rcg.core.rng import fold_seed
from rcg.data.loading import TensorDataset
from rcg.diffusion.h_space import Asymmetric, ShiftNetwork, channels_of, h_of
from rcg.diffusion.model import GenerativeModel
from rcg.diffusion.self_conditioning import beside
from rcg.editing.directions import Direction
from rcg.editing.images import SquareImage
from rcg.editing.phases import Phases
from rcg.editing.shifts import STEPS
from rcg.editing.trained_shift import KIND, ShiftConfig, TrainedShift, generator_id
from rcg.encoding.encoder import open_encoder
from rcg.encoding.representation import Representation
from rcg.encoding.run_folder import StageFolder
from rcg.encoding.transform import Transform
from rcg.pipeline import Code, Pipeline
from rcg.training.loop import train

JUDGED = 16
"""Images of the evaluation at the end."""


class Judge(NamedTuple):
    """A frozen encoder's opinion of a property.

    Attributes:
        represent: maps images `(B, 3, S, S)` in [0, 1] to `(B, D)`, with gradients.
        direction: along which the property grows, `(D,)`.
    """

    represent: Callable[[Tensor], Tensor]
    direction: Tensor


def own_judge(pipeline: Pipeline, direction: Direction) -> Judge:
    """Return the opinion of a run's encoder: a direction of z."""
    return Judge(_with_gradients(pipeline.representation), direction.vector.to(pipeline.device))


def other_judge(
    encoder: str, pipeline: Pipeline, positive: Sequence[SquareImage], negative: Sequence[SquareImage]
) -> Judge:
    """Return another encoder's opinion: the difference of its mean representations of images with and without it.

    Args:
        encoder: a YAML file with an encoder section, or YAML, as for `rcg.config.load_encoder_section`.
        pipeline: of the run.
        positive: images with the property.
        negative: images without it.

    Raises:
        UserError: there is no such encoder, or it has no weights.
    """
    section, size = load_encoder_section(encoder)
    representation = Representation(open_encoder(section, size or pipeline.image_size), Transform("per_sample"))
    representation = representation.to(pipeline.device)
    means = [
        torch.stack([representation(image.pixels[None].to(pipeline.device))[0] for image in images]).mean(0)
        for images in (positive, negative)
    ]
    return Judge(_with_gradients(representation), F.normalize(means[0] - means[1], dim=0))


@dataclass(frozen=True)
class ShiftOptions:
    """How a shift is trained.

    Attributes:
        steps: batches; each is led from noise to t_edit, with an optimizer step at each time.
        batch_size: images of a batch.
        lr: peak learning rate.
        keep: weight of the L1 distance to the estimates that are not edited.
        width: of the network; None: that of h.
        block: of the generator; see `rcg.core.contracts.Denoiser.bottleneck`.
        seed: of weights and batches.
    """

    steps: int = 100
    batch_size: int = 16
    lr: float = 1e-3
    keep: float = 3.0
    width: int | None = None
    block: int | None = None
    seed: int = 0


class ShiftTask(Task):
    """Trains a shift of h: edited estimates of clean data shall lie along a direction from those that are not edited.

    Two walks without fresh noise start at the codes of images: a plain one, and one edited by the shift. At each time
    until t_edit the loss is 1 - cosine of the change of the judged estimate with the direction, plus `keep` times the
    L1 distance of the two estimates.
    """

    def __init__(
        self, pipeline: Pipeline, network: ShiftNetwork, code: Code, judge: Judge, options: ShiftOptions, end: float
    ) -> None:
        """Train `network` on the codes of some images, on the way from noise to `end`, a share of the times."""
        assert code.noise is not None
        self.modules: dict[str, nn.Module] = {"shift": network}
        self.data = TensorDataset({"noise": code.noise, "z": code.z})
        self.facts = Facts(data=pipeline.generator.data)
        self.model, self.decode = pipeline.generator, pipeline.autoencoder.decode
        self.judge, self.keep, self.block, self.end = judge, options.keep, options.block, end
        self.judged = {name: column[:JUDGED] for name, column in self.data.columns.items()}

    def losses(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the losses at each time of a batch's walks; the log adds them up."""
        for alignment, distance in self._walk(self.modules["shift"], batch):
            yield "shift", {"direction": 1 - alignment, "l1": self.keep * distance}

    @torch.no_grad()
    def evaluate(self, models: Mapping[str, nn.Module], step: int) -> EvalResult:
        """Return the mean cosine with the direction, `alignment`, and the mean L1 distance, of some images."""
        batch = {name: column.to(self.judge.direction.device) for name, column in self.judged.items()}
        figures = torch.tensor([[float(value) for value in pair] for pair in self._walk(models["shift"], batch)])
        alignment, distance = figures.mean(0).tolist()
        return EvalResult({"alignment": alignment, "l1": distance}, {})

    def export(self, models: Mapping[str, nn.Module]) -> Part:
        """Return the network's weights."""
        return Part(KIND, {}, self.facts, models["shift"].state_dict())

    def _walk(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield alignment and L1 distance at each time, noisiest first."""
        model, z = self.model, batch["z"]
        shifted = Asymmetric(model.process, model.network, lambda seen: network(seen.h, seen.time), 0.0, self.block)
        plain, edited = model.with_estimate(model.process), model.with_estimate(shifted)
        x_plain = x_edited = batch["noise"]
        for level, target in pairwise(model.process.levels(STEPS, "trailing")):
            if level.t / model.process.horizon < self.end:
                break
            with torch.no_grad():
                source = plain.predict(model.network, x_plain, level, z)
                before = self.judge.represent(self.decode(source.x0))
            moved = edited.predict(model.network, x_edited, level, z)
            change = self.judge.represent(self.decode(moved.x0)) - before
            alignment = F.cosine_similarity(change, self.judge.direction[None]).mean()
            yield alignment, (moved.x0 - source.x0).abs().mean()
            x_plain, x_edited = _step(source, target), _step(moved, target)


def train_shift(
    pipeline: Pipeline,
    images: Sequence[SquareImage],
    direction: Direction,
    judge: Judge,
    phases: Phases,
    options: ShiftOptions,
    accelerator: Accelerator,
) -> TrainedShift:
    """Train a shift of h for one property.

    Args:
        pipeline: of the run.
        images: to train on; about 100 are enough.
        direction: of z along which the property is measured.
        judge: says where the property grows.
        phases: when to edit.
        options: how.
        accelerator: the processes.

    Raises:
        UserError: the generator has no h-space, no such block, or no noise to recover; or editing ends at once.
        Stopped: a signal has ended the training.
    """
    pipeline.generator.network.bottleneck(options.block)
    process = pipeline.generator.process
    if phases.edit > process.levels(STEPS, "trailing")[0].t / process.horizon:
        raise UserError(f"t_edit is {phases.edit:g}, so that nothing is edited or learned: choose an earlier end")
    batches = torch.stack([image.pixels for image in images]).split(64)
    codes = [pipeline.encode(part, STEPS) for part in batches]
    # Copies, because tensors made in inference mode cannot be trained on.
    z, noise = (torch.cat(parts).cpu().clone() for parts in zip(*codes, strict=True))
    channels = _channels(pipeline.generator, noise[:1].to(pipeline.device), z[:1].to(pipeline.device), options.block)
    width = options.width or channels
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(fold_seed(options.seed, "weights", KIND))
        network = ShiftNetwork(channels, width)
    config = TrainConfig(
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        schedule="cosine",
        grad_clip=1.0,
        ema_decay=None,
        precision="no",
        log_every=max(1, options.steps // 10),
        save_every=options.steps,
        tracker="none",
    )
    task = ShiftTask(pipeline, network, Code(z, noise), judge, options, phases.edit)
    with TemporaryDirectory() as parent:
        folder = StageFolder(Path(parent) / KIND)
        folder.path.mkdir()
        try:
            train(task, config, folder, accelerator, options.seed)
        except Stopped as stop:
            raise Stopped("stopped; a shift is trained in one go, so nothing was written", stop.number) from None
    trained = accelerator.unwrap_model(task.modules["shift"]).eval().requires_grad_(False)
    alignment = task.evaluate({"shift": trained}, options.steps).metrics["alignment"]
    quality = f"cosine {alignment:.2f} with the direction, {len(images)} images"
    saved = ShiftConfig(
        name=direction.name,
        generator=generator_id(pipeline),
        channels=channels,
        width=width,
        block=options.block,
        edit=phases.edit,
        boost=phases.boost,
    )
    return TrainedShift(direction, saved, trained, quality)


def _channels(model: GenerativeModel, noise: Tensor, z: Tensor, block: int | None) -> int:
    """Return the channels of a generator's h, given one code."""
    x = beside(noise, None) if model.config.self_condition else noise
    return channels_of(h_of(model.network, x, torch.zeros(1, device=x.device), z, block))


def _step(prediction: Prediction, target: Level) -> Tensor:
    """Return where a step of DDIM without fresh noise leads."""
    return (target.alpha * prediction.x0 + target.sigma * prediction.eps).detach()


def _with_gradients(representation: Representation) -> Callable[[Tensor], Tensor]:
    """Return the map of a representation, through which gradients of the image flow."""
    return lambda image: representation.transform(representation.encoder(image).float())
