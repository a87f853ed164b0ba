"""The one training loop: it knows modules and losses, not modalities."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from accelerate.utils.constants import FSDP_MODEL_NAME
from torch import Tensor, nn

from rcg.config import TrainConfig
from rcg.core import checkpoint
from rcg.core.console import progress as progress_bar
from rcg.core.console import say
from rcg.core.contracts import EvalResult, Task
from rcg.core.errors import UserError
from rcg.core.rng import batch_draws, fold_seed
from rcg.data.loading import StepKeys, training_batches
from rcg.distributed.fsdp import prepare_for_sharding, shard_parameters, unshard
from rcg.encoding.run_folder import StageFolder
from rcg.training import trackers
from rcg.training.ema import EMA
from rcg.training.logger import TrainingLogger
from rcg.training.progress import Progress


@dataclass
class Training:
    """One stage in training: what the loop holds between two steps."""

    task: Task
    config: TrainConfig
    folder: StageFolder
    accelerator: Accelerator
    optimizers: dict[str, Any] = field(default_factory=dict)
    averages: dict[str, EMA] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)

    def models(self) -> dict[str, nn.Module]:
        """Return the modules to evaluate and export: averaged where there is an average, else live.

        Every process has to ask: what is sharded is gathered for the main one.
        """
        live = {name: self.accelerator.unwrap_model(module) for name, module in self.task.modules.items()}
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

    def is_due(self, period: int | None) -> bool:
        """Whether something that happens every `period` steps happens now."""
        return period is not None and self.progress.step % period == 0


def train(
    task: Task,
    config: TrainConfig,
    folder: StageFolder,
    accelerator: Accelerator,
    seed: int,
    num_workers: int | None = None,
) -> Progress:
    """Train `task` for `config.steps` steps, resuming from the newest state in `folder` if there is one.

    What is drawn for a sample is a function of (seed, step, place in the batch): a resumed run draws what it would have
    drawn, on any number of processes. SIGTERM and SIGINT end the run after the current step, with a checkpoint.

    Args:
        task: what is trained.
        config: how.
        folder: where checkpoints, log and samples go.
        accelerator: the processes.
        seed: of data order and noise.
        num_workers: data loader processes; None: chosen from the data and the machine.

    Raises:
        UserError: a loss is not finite any more.
    """
    training = _prepare(Training(task, config, folder, accelerator))
    progress = training.progress
    keys = StepKeys(len(task.data), config, seed, progress.step, accelerator.process_index, accelerator.num_processes)
    batches = iter(training_batches(task.data, keys, num_workers, pin=accelerator.device.type == "cuda"))
    bar = progress_bar(
        total=config.steps,
        initial=progress.step,
        desc=folder.name,
        shown=training.is_main,
        unit="step",
        interval=math.inf,
    )
    with bar, TrainingLogger(folder, accelerator, progress) as log, _stop_requests() as stop:
        while not training.is_finished:
            log.add(_step(training, batches, seed))
            bar.update()
            if training.is_due(config.log_every):
                bar.set_postfix_str(log.write(learning_rate(config, progress.step - 1)))
            if training.is_due(config.evaluate_every) and not training.is_finished:
                log.report(_evaluate(training))
                if config.patience is not None and progress.best_step == progress.step:
                    _save(training)
            if _any_was_asked(training, stop) or training.is_exhausted:
                break
            if training.is_due(config.save_every) and not training.is_finished:
                _save(training)
        log.pause()
        if training.is_finished:
            log.report(_evaluate(training))
        _save(training)
    _say_how_it_ended(training)
    return progress


def _say_how_it_ended(training: Training) -> None:
    progress, config = training.progress, training.config
    if training.is_exhausted:
        say(
            f"stopped at step {progress.step} of {config.steps}: {progress.stale} evaluations were no better than "
            f"{progress.best:.4g} at step {progress.best_step}, whose model is exported"
        )
    elif not training.is_finished:
        say(f"stopped at step {progress.step} of {config.steps}; --resume goes on from there")


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of step `step`, counted from 0: linear warm-up, then constant or half a cosine to zero."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + float(torch.cos(torch.tensor(share * torch.pi, dtype=torch.float64))))


def _prepare(training: Training) -> Training:
    config, accelerator = training.config, training.accelerator
    for name, module in list(training.task.modules.items()):
        module.to(accelerator.device)
        # A sharded module cannot be copied for evaluation: where there is no average, one without memory follows it.
        if config.ema_decay is not None or accelerator.is_fsdp2:
            training.averages[name] = EMA(module, config.ema_decay or 0.0)
            accelerator.register_for_checkpointing(training.averages[name])
        if config.compile:
            training.task.compiled(name).compile()
        if accelerator.is_fsdp2:
            prepare_for_sharding(module, accelerator)
        optimizer = torch.optim.AdamW(_groups(module, config), lr=config.lr, betas=config.betas, fused=True)
        training.task.modules[name], training.optimizers[name] = accelerator.prepare(module, optimizer)
        if accelerator.is_fsdp2:
            shard_parameters(training.averages[name].module, training.task.modules[name])
    accelerator.register_for_checkpointing(training.progress)
    # TensorBoard makes this the name of a folder, the others the name of a project.
    project = "tensorboard" if config.tracker == "tensorboard" else "rcg"
    trackers.start(accelerator, project, training.folder.experiment() if training.is_main else None)
    state = training.folder.latest_state()
    if state is not None:
        _check_sharding(state, accelerator)
        accelerator.load_state(str(state))
    return training


def _check_sharding(state: Path, accelerator: Accelerator) -> None:
    sharded = (state / f"{FSDP_MODEL_NAME}.bin").is_file()
    if sharded != accelerator.is_fsdp2:
        raise UserError(
            f"{state} was written {'with' if sharded else 'without'} FSDP: go on as the run was started, or start "
            f"again with --overwrite"
        )


def _groups(module: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in trained if config.decay_all or p.ndim > 1]
    others = [p for p in trained if not (config.decay_all or p.ndim > 1)]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _step(training: Training, batches: Iterator[Any], seed: int) -> dict[str, Tensor]:
    """Take one optimizer step for every yield of the task; return the detached losses."""
    config, accelerator, step = training.config, training.accelerator, training.progress.step
    totals: dict[str, Tensor] = {}
    for micro in range(config.grad_accum_steps):
        torch.manual_seed(fold_seed(seed, "step", step, micro, accelerator.process_index))
        part = config.batch_size // (accelerator.num_processes * config.grad_accum_steps)
        first = (micro * accelerator.num_processes + accelerator.process_index) * part
        batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in next(batches).items()}
        places = batch_draws(fold_seed(seed, "draws", step), first, part, config.batch_size)
        with places, accelerator.accumulate(*training.task.modules.values()):
            for name, losses in training.task.losses(batch, step):
                accelerator.backward(torch.stack(list(losses.values())).sum())
                _update(training, name, step)
                for key, value in losses.items():
                    totals[key] = totals.get(key, 0) + value.detach() / config.grad_accum_steps
    training.task.after_step(step)
    for name, average in training.averages.items():
        average.update(accelerator.unwrap_model(training.task.modules[name]))
    training.progress.step += 1
    return totals


def _update(training: Training, name: str, step: int) -> None:
    module, optimizer = training.task.modules[name], training.optimizers[name]
    if training.accelerator.sync_gradients and training.config.grad_clip is not None:
        training.accelerator.clip_grad_norm_(module.parameters(), training.config.grad_clip)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(training.config, step)
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def _evaluate(training: Training) -> EvalResult:
    """Evaluate the models on the main process; the others wait."""
    report = EvalResult({}, {})
    models = training.models()
    if training.is_main:
        modes = {name: model.training for name, model in models.items()}
        with training.accelerator.autocast():
            report = training.task.evaluate(
                {name: model.eval() for name, model in models.items()}, training.progress.step
            )
        for name, model in models.items():
            model.train(modes[name])
    training.accelerator.wait_for_everyone()
    if training.config.patience is not None:
        score = torch.tensor(math.inf if report.score is None else report.score, device=training.accelerator.device)
        training.progress.note(float(broadcast(score)))
    return report


def _save(training: Training) -> None:
    """Write the resumable state, then the part that other stages load; each appears whole or not at all."""
    states = training.folder.states
    target = states / f"step-{training.progress.step:09d}"
    temporary = states / f".{target.name}"
    if training.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
    training.accelerator.wait_for_everyone()
    training.accelerator.save_state(str(temporary))
    training.accelerator.wait_for_everyone()
    if training.is_main:
        temporary.rename(target)
        for old in states.iterdir():
            if old != target:
                shutil.rmtree(old)
    # With early stopping the model of the best evaluation stays; before the first one, `best_step` is 0.
    if training.config.patience is None or training.progress.best_step in (0, training.progress.step):
        _export(training, training.models())
    training.accelerator.wait_for_everyone()


def _export(training: Training, models: Mapping[str, nn.Module]) -> None:
    if training.is_main:
        part, progress = training.task.export(models), training.progress
        trained = {"step": progress.step, "steps": training.config.steps, "seconds": round(progress.seconds, 1)}
        facts = part.facts.model_copy(update=trained)
        checkpoint.save(training.folder.checkpoint, replace(part, facts=facts))


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Record SIGTERM and SIGINT so that the loop can stop cleanly."""
    received: list[int] = []
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in signals}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _any_was_asked(training: Training, stop: list[int]) -> bool:
    """Whether any process was asked to stop; several ask each other now and then, so that all stop at one step."""
    if training.accelerator.num_processes == 1:
        return bool(stop)
    if training.progress.step % 10:
        return False
    votes = torch.tensor([len(stop)], device=training.accelerator.device)
    return bool(training.accelerator.gather(votes).sum() > 0)
