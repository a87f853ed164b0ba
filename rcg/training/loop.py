"""The one training loop: it knows modules and losses, not modalities."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from rcg.config import TrainConfig
from rcg.core import checkpoint
from rcg.core.checkpoint import Part
from rcg.core.console import progress as progress_bar
from rcg.core.console import say
from rcg.core.contracts import EvalResult, Task
from rcg.core.errors import Stopped
from rcg.core.rng import batch_draws, fold_seed
from rcg.core.signals import StopRequest, stop_requests
from rcg.data.loading import StepKeys, training_batches
from rcg.distributed.fsdp import prepare_for_sharding, shard_parameters
from rcg.encoding.run_folder import StageFolder
from rcg.training import trackers
from rcg.training.ema import EMA
from rcg.training.optimizer import build_optimizer, set_rate
from rcg.training.progress import Progress
from rcg.training.state import Training, check_losses, load_state, save_state


def train(
    task: Task,
    config: TrainConfig,
    folder: StageFolder,
    accelerator: Accelerator,
    seed: int,
    num_workers: int | None = None,
) -> Progress:
    """Train `task` for `config.steps` steps, resuming from the newest good state in `folder` if there is one.

    What is drawn for a sample is a function of (seed, step, place in the batch): a resumed run draws what it would have
    drawn, on any number of processes. SIGTERM, SIGINT and SIGHUP end the run after the current step, with a checkpoint.
    A training that is finished already writes nothing but the settings of its model, where these have changed.

    Args:
        task: what is trained.
        config: how.
        folder: where checkpoints, log and samples go.
        accelerator: the processes.
        seed: of data order and noise.
        num_workers: data loader processes; None: chosen from the data and the machine.

    Raises:
        UserError: a loss or a weight is not finite any more, or all states are damaged.
        Stopped: a signal has ended the training.
    """
    training = _prepare(Training(task, config, folder, accelerator))
    progress, log = training.progress, training.log
    first = progress.step
    keys = StepKeys(len(task.data), config, seed, first, accelerator.process_index, accelerator.num_processes)
    serving = training_batches(task.data, keys, num_workers, pin=accelerator.device.type == "cuda")
    bar = progress_bar(
        total=config.steps, initial=first, desc=folder.name, shown=training.is_main, unit="step", interval=math.inf
    )
    with serving as batches, bar, log, stop_requests() as request:
        while True:
            # An evaluation comes after a checkpoint: whatever becomes of it, no step is lost, and one that was
            # interrupted is made when the training goes on.
            due = any(map(training.is_due, (config.save_every, config.evaluate_every)))
            if training.needs_evaluation or due or progress.step == config.decay_start:
                _save(training)
            if training.needs_evaluation:
                log.report(_evaluate(training))
                if config.patience is not None and progress.best_step == progress.step:
                    _save(training)
            if progress.step == config.snapshot_step:
                _save_snapshot(training)
            signal = _stop_signal(training, request)
            if signal or training.is_finished or training.is_exhausted:
                break
            log.add(_step(training, batches, seed))
            bar.update()
            if training.is_due(config.log_every):
                check_losses(training)
                bar.set_postfix_str(log.write(learning_rate(config, progress.step - 1)))
        _save(training)
        if progress.step == first:
            _export_settings(training)
    if training.is_exhausted:
        if progress.best is None:
            reason = f"{progress.stale} evaluations had no finite score"
        else:
            reason = (
                f"{progress.stale} evaluations were no better than {progress.best:.4g} at step {progress.best_step}, "
                f"whose model is exported"
            )
        say(f"stopped at step {progress.step} of {config.steps}: {reason}")
    elif not training.is_finished:
        raise Stopped(f"stopped at step {progress.step} of {config.steps}; --resume goes on from there", signal)
    return progress


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of step `step`, counted from 0: linear warm-up, then by `config.schedule`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    if config.decay_start is not None:
        return config.lr * min(1.0, (config.steps - step) / (config.steps - config.decay_start))
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + float(torch.cos(torch.tensor(share * torch.pi, dtype=torch.float64))))


def _prepare(training: Training) -> Training:
    config, accelerator = training.config, training.accelerator
    for name, module in list(training.task.modules.items()):
        module.to(accelerator.device)
        # A sharded module cannot be copied for evaluation: where there is no average, one without memory follows it.
        if config.ema_decay is not None or accelerator.is_fsdp2:
            training.averages[name] = EMA(module, config.ema_decay or 0.0)
        if config.compile:
            training.task.compiled(name).compile()
        if accelerator.is_fsdp2:
            prepare_for_sharding(module, accelerator)
        optimizer = build_optimizer(module, config)
        training.task.modules[name], training.optimizers[name] = accelerator.prepare(module, optimizer)
        if accelerator.is_fsdp2:
            shard_parameters(training.averages[name].module, training.task.modules[name])
    # TensorBoard makes this the name of a folder, the others the name of a project.
    project = "tensorboard" if config.tracker == "tensorboard" else "rcg"
    trackers.start(accelerator, project, training.folder.experiment() if training.is_main else None)
    load_state(training)
    return training


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
    if training.averages:
        live = training.live()
        for name, average in training.averages.items():
            average.update(live[name])
    training.progress.step += 1
    return totals


def _update(training: Training, name: str, step: int) -> None:
    module, optimizer = training.task.modules[name], training.optimizers[name]
    if training.accelerator.sync_gradients and training.config.grad_clip is not None:
        training.accelerator.clip_grad_norm_(module.parameters(), training.config.grad_clip)
    set_rate(optimizer, learning_rate(training.config, step))
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
    training.progress.evaluated_step = training.progress.step
    if training.config.patience is not None:
        score = torch.tensor(math.inf if report.score is None else report.score, device=training.accelerator.device)
        training.progress.note(float(broadcast(score)))
    return report


def _save(training: Training) -> None:
    """Write the state, then the part that other stages load, where they have changed; each appears whole or not at all.

    Every process has to call this.
    """
    training.log.pause()
    if training.saved != training.progress:
        save_state(training)
    # With early stopping the model of the best evaluation stays; before the first one, `best_step` is 0.
    is_best = training.config.patience is None or training.progress.best_step in (0, training.progress.step)
    if is_best and training.exported_step != training.progress.step:
        _export(training)


def _export(training: Training) -> None:
    models = training.models()
    if training.is_main:
        own = (training.folder.checkpoint, training.task.export(models))
        for path, part in (*training.task.other_parts(models), own):
            checkpoint.save(path, _dated(training, part))
    training.exported_step = training.progress.step
    training.accelerator.wait_for_everyone()


def _save_snapshot(training: Training) -> None:
    models = training.models()
    if training.is_main:
        checkpoint.save(training.folder.snapshot, _dated(training, training.task.export(models)))
    training.accelerator.wait_for_everyone()


def _dated(training: Training, part: Part) -> Part:
    """Return a part that says how far its training is."""
    progress = training.progress
    trained = {"step": progress.step, "steps": training.config.steps, "seconds": round(progress.seconds, 1)}
    return replace(part, facts=part.facts.model_copy(update=trained))


def _export_settings(training: Training) -> None:
    """Give the model of a training that was over before the settings that may still change (a sampler, say)."""
    models = training.models()
    if training.is_main and training.folder.is_trained:
        part, config = training.folder.part(), training.task.export(models).config
        if config != part.config:
            checkpoint.save(training.folder.checkpoint, replace(part, config=config))


def _stop_signal(training: Training, request: StopRequest) -> int:
    """Return the number of the signal that asked any process to stop, 0 for none.

    Several processes ask each other now and then, so that all stop at one step.
    """
    if training.accelerator.num_processes == 1:
        return request.look() or 0
    if training.progress.step % 10:
        return 0
    vote = torch.tensor([request.look() or 0], device=training.accelerator.device)
    return int(training.accelerator.gather(vote).max())
