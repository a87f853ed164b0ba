"""What a training holds between two steps, and the file that it goes on from: safetensors, with JSON in the header."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch import Tensor, nn

from rcg.config import TrainConfig
from rcg.core import checkpoint
from rcg.core.console import warn
from rcg.core.contracts import Task
from rcg.core.errors import UserError
from rcg.distributed.fsdp import full_tensor, shard_tensor, unshard
from rcg.distributed.launch import gather
from rcg.encoding.run_folder import StageFolder
from rcg.training.ema import EMA
from rcg.training.logger import LogPosition, TrainingLogger
from rcg.training.optimizer import kept_numbers
from rcg.training.progress import Progress

KEPT = 2
"""Number of states that are kept, for the case that the newest is damaged."""


@dataclass
class Training:
    """One stage in training: what the loop holds between two steps.

    Attributes:
        task: what is trained.
        config: how.
        folder: where it is kept.
        accelerator: the processes.
        optimizers: of the task's modules, by their names.
        averages: of their weights.
        progress: how far it is.
        saved: the progress that the newest state holds; None: there is no state.
        states: the files of the newest good states, newest first.
        exported_step: of the model in the folder; None: there is none.
    """

    task: Task
    config: TrainConfig
    folder: StageFolder
    accelerator: Accelerator
    optimizers: dict[str, Any] = field(default_factory=dict)
    averages: dict[str, EMA] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    saved: Progress | None = None
    states: list[Path] = field(default_factory=list)
    exported_step: int | None = None

    def __post_init__(self) -> None:
        self.log = TrainingLogger(self.folder, self.accelerator, self.progress)

    def live(self) -> dict[str, nn.Module]:
        """Return the modules in training, without the wrappers of the accelerator and of compilers."""
        unwrap = self.accelerator.unwrap_model
        return {name: unwrap(module, keep_torch_compile=False) for name, module in self.task.modules.items()}

    def models(self) -> dict[str, nn.Module]:
        """Return the modules to evaluate and export: averaged where there is an average, else live.

        Every process has to ask: what is sharded is gathered for the main one.
        """
        live = self.live()
        chosen = {name: self.averages[name].module if name in self.averages else live[name] for name in live}
        return {name: unshard(module, keep=self.is_main) for name, module in chosen.items()}

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.accelerator.is_main_process

    @property
    def is_finished(self) -> bool:
        """Whether all steps are taken."""
        return self.progress.step >= self.config.steps

    @property
    def is_exhausted(self) -> bool:
        """Whether early stopping has lost its patience."""
        return self.config.patience is not None and self.progress.stale >= self.config.patience

    @property
    def needs_evaluation(self) -> bool:
        """Whether this step has an evaluation that is not made yet."""
        due = self.is_finished or self.is_due(self.config.evaluate_every)
        return due and self.progress.evaluated_step != self.progress.step

    def is_due(self, period: int | None) -> bool:
        """Whether something that happens every `period` steps happens now."""
        return period is not None and self.progress.step > 0 and self.progress.step % period == 0


class StateFacts(BaseModel):
    """The numbers of a state; its random draws follow from (seed, step)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    progress: Progress
    updates: dict[str, NonNegativeInt]
    """Of the averages, by module."""
    scaler: dict[str, int | float] | None
    """Of the gradients' scaler, in half precision."""
    log: LogPosition
    decay_start: NonNegativeInt | None = None
    """Step from which the learning rate was planned to fall by schedule: wsd."""


@torch.no_grad()
def save_state(training: Training) -> None:
    """Write the state of a training; the newest states stay, and that before the decay; older ones are deleted.

    Every process has to call this.

    Raises:
        UserError: a loss or a weight is not finite; nothing is written.
    """
    check_losses(training)
    tensors = {}
    for name, value in _tensors(training).items():
        full = full_tensor(value)  # one at a time, so that the other processes never hold them all
        if not torch.isfinite(full).all():
            raise _not_finite(training, "the weights are", name)
        if training.is_main:
            tensors[name] = full.cpu()
    path = training.folder.state_file(training.progress.step)
    position = training.log.position()  # of all processes, which would wait for ever for one that does not ask
    if training.is_main:
        scaler = training.accelerator.scaler
        facts = StateFacts(
            progress=training.progress,
            updates={name: average.updates for name, average in _kept_averages(training)},
            scaler=None if scaler is None else scaler.state_dict(),
            log=position,
            decay_start=training.config.decay_start,
        )
        checkpoint.save_tensors(path, tensors, facts.model_dump(mode="json"))
    training.states = _kept(training, [path, *(state for state in training.states if state != path)])
    if training.is_main:
        for state in training.folder.state_files():
            if state not in training.states:
                state.unlink()
    training.saved = _copy(training.progress)
    training.accelerator.wait_for_everyone()


@torch.no_grad()
def load_state(training: Training) -> None:
    """Go on from the newest good state, if there is any.

    Raises:
        UserError: there are states, but none is good.
    """
    files = training.folder.state_files()
    if not files:
        training.log.restore(LogPosition(0, {}, 0))
    for number, path in enumerate(files):
        try:
            facts, tensors = _read(training, path)
        except UserError as error:
            if number + 1 == len(files):
                raise UserError(f"{error}, and there is no other state: start again with --overwrite") from None
            warn(f"{error}: trying {files[number + 1].name}, which is older")
            continue
        training.states = _kept(training, files[number:])
        _restore(training, facts, tensors)
        break
    if training.folder.is_trained:
        with suppress(UserError):  # a damaged model is written again
            step = training.folder.part(weights=False).facts.step
            # What was trained beyond the state may end otherwise the second time, where the plan has changed.
            training.exported_step = step if step <= training.progress.step else None
    steps = gather(torch.tensor([training.progress.step], device=training.accelerator.device))
    if (steps != steps[0]).any():
        raise UserError(f"{training.folder.states}: the processes read different states, of steps {steps.tolist()}")


def _kept(training: Training, states: list[Path]) -> list[Path]:
    """Return which of some states, newest first, are kept: two, and that from which a training is made longer."""
    start = training.config.decay_start
    return [path for place, path in enumerate(states) if place < KEPT or StageFolder.step_of(path) == start]


def check_losses(training: Training) -> None:
    """Raise `UserError` if a loss since the last line of the log was not finite; every process has to call this."""
    means = training.log.means()
    if not all(map(math.isfinite, means.values())):
        raise _not_finite(training, "the loss is", str(means))


def _not_finite(training: Training, what: str, where: str) -> UserError:
    """Return the error of a training whose numbers broke, with what to do about it."""
    remedy = "a lower train.lr, train.grad_clip=1 or train.precision=no"
    if training.states:
        step = StageFolder.step_of(training.states[0])
        advice = f"the state of step {step} is kept: go on from there with --resume and {remedy}"
    else:
        advice = f"nothing was saved before: start again with --overwrite and {remedy}"
    return UserError(f"{training.folder.path}: {what} not finite at step {training.progress.step} ({where}); {advice}")


def _weights(training: Training) -> dict[str, Tensor]:
    """Return the weights of the modules and of their averages by their names in a state; sharded ones as shards."""
    modules = {f"module/{name}": module for name, module in training.live().items()}
    modules |= {f"average/{name}": average.module for name, average in _kept_averages(training)}
    return {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def _kept_averages(training: Training) -> list[tuple[str, EMA]]:
    """Return the averages but those without memory, which equal the weights."""
    return [(name, average) for name, average in training.averages.items() if average.decay > 0]


class _Optimized(NamedTuple):
    """A parameter in training.

    Attributes:
        name: prefix of its optimizer's numbers in a state.
        parameter: itself.
        group: the optimizer's, with its settings.
        states: the optimizer's numbers, by parameter.
    """

    name: str
    parameter: nn.Parameter
    group: dict[str, Any]
    states: dict[nn.Parameter, Any]

    @property
    def keys(self) -> dict[str, str]:
        """The names of its numbers in a state, by the optimizer's."""
        return {number: f"{self.name}/{number}" for number in kept_numbers(self.group)}

    def like(self, number: str) -> Tensor:
        """Return a tensor of the shape and type of a number."""
        return torch.zeros(()) if number == "step" else self.parameter

    def restored(self, number: str, value: Tensor) -> Tensor:
        """Return a number of a state as and where the optimizer holds it."""
        if number == "step":
            return value.to(self.parameter.device) if self.group.get("fused") else value
        return torch.zeros_like(self.parameter).copy_(shard_tensor(value, self.parameter))


def _optimized(training: Training) -> Iterator[_Optimized]:
    """Yield the parameters in training."""
    for name, module in training.live().items():
        optimizer = training.optimizers[name]
        groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
        for key, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield _Optimized(f"optimizer/{name}/{key}", parameter, groups[parameter], optimizer.state)


def _tensors(training: Training) -> dict[str, Tensor]:
    """Return all tensors of a state; a parameter that no step has touched has none of its optimizer's."""
    found = _weights(training)
    for one in _optimized(training):
        if one.parameter in one.states:
            found |= {key: one.states[one.parameter][number] for number, key in one.keys.items()}
    return found


def _read(training: Training, path: Path) -> tuple[StateFacts, dict[str, Tensor]]:
    """Read a state; raises `UserError` if it is damaged, or not of this training."""
    tensors, numbers = checkpoint.load_tensors(path)
    try:
        facts = StateFacts.model_validate(numbers)
    except ValidationError:
        raise UserError(f"{path} is not the state of a training, or was written by another version of rcg") from None
    if facts.progress.step != StageFolder.step_of(path):
        raise UserError(f"{path} is the state of step {facts.progress.step}: it was renamed")
    before, now = facts.decay_start, training.config.decay_start
    if before is not None and now is not None and before < min(now, facts.progress.step):
        raise UserError(f"{path} is of a shorter plan, by which the learning rate falls from step {before} on")
    expected = _weights(training)
    for one in _optimized(training):
        if tensors.keys() & one.keys.values():
            expected |= {key: one.like(number) for number, key in one.keys.items()}
    odd = next(iter(sorted(expected.keys() ^ tensors.keys())), None)
    if odd is not None:
        raise UserError(f"{path} does not fit this training: it has {'no' if odd in expected else 'a'} tensor {odd}")
    for name, value in tensors.items():
        like = expected[name]
        if (value.shape, value.dtype) != (like.shape, like.dtype):
            raise UserError(
                f"{path} does not fit this training: {name} is {tuple(value.shape)} {value.dtype}, not "
                f"{tuple(like.shape)} {like.dtype}"
            )
    scaler = training.accelerator.scaler
    if scaler and facts.scaler and facts.scaler.keys() != scaler.state_dict().keys():
        raise UserError(f"{path} does not fit this training: its scaler of gradients is another one")
    if facts.updates.keys() != dict(_kept_averages(training)).keys():
        raise UserError(
            f"{path} does not fit this training: it has averages of {', '.join(facts.updates) or 'nothing'}"
        )
    return facts, tensors


def _restore(training: Training, facts: StateFacts, tensors: Mapping[str, Tensor]) -> None:
    """Give a training what a state holds; values are copied, so that they keep their places and layouts in memory."""
    for name, value in _weights(training).items():
        value.copy_(shard_tensor(tensors[name], value))
    for one in _optimized(training):
        if tensors.keys() & one.keys.values():
            one.states[one.parameter] = {number: one.restored(number, tensors[key]) for number, key in one.keys.items()}
    for name, average in training.averages.items():
        if name in facts.updates:
            average.updates = facts.updates[name]
        else:
            average.update(training.live()[name])
    if training.accelerator.scaler and facts.scaler:
        training.accelerator.scaler.load_state_dict(facts.scaler)
    vars(training.progress).update(vars(facts.progress))
    training.saved = _copy(training.progress)
    training.log.restore(facts.log)


def _copy(progress: Progress) -> Progress:
    return Progress(**vars(progress))
