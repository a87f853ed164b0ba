"""The one training loop: it knows modules and losses, not modalities."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from accelerate.utils.constants import FSDP_MODEL_NAME
from torch import Tensor, nn
from tqdm import tqdm

from rcg.config import TrainConfig
from rcg.core import checkpoint
from rcg.core.contracts import Report, Task
from rcg.core.errors import UserError
from rcg.core.rng import fold
from rcg.data.loading import StepKeys, loader
from rcg.distributed.fsdp import announce, assembled, cut_parameters
from rcg.training.ema import EMA
from rcg.training.logger import Journal, Progress


@dataclass
class Run:
    """One stage in training: what the loop holds between two steps."""

    task: Task
    config: TrainConfig
    folder: Path
    accelerator: Accelerator
    optimizers: dict[str, Any] = field(default_factory=dict)
    averages: dict[str, EMA] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)

    def models(self) -> dict[str, nn.Module]:
        """Return the modules to judge and keep: averaged where an average is kept, else live.

        Every process has to ask: what is sharded is gathered for the main one.
        """
        live = {name: self.accelerator.unwrap_model(module) for name, module in self.task.modules.items()}
        kept = {name: self.averages[name].module if name in self.averages else live[name] for name in live}
        return {name: assembled(module, keep=self.main) for name, module in kept.items()}

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.accelerator.is_main_process


def train(
    task: Task, config: TrainConfig, folder: Path, accelerator: Accelerator, seed: int, workers: int | None
) -> Progress:
    """Train `task` for `config.steps` steps, going on from the newest checkpoint in `folder` if there is one.

    Every step draws from rcg.generators seeded with (seed, step, rank), so that an interrupted run that goes on draws
    what it would have drawn. SIGTERM and SIGINT end the run after the current step, with a checkpoint.

    Raises:
        UserError: a loss is not finite any more.
    """
    run = _prepare(Run(task, config, folder, accelerator))
    keys = StepKeys(
        len(task.data), config, seed, run.progress.step, accelerator.process_index, accelerator.num_processes
    )
    batches = iter(loader(task.data, keys, workers, pin=accelerator.device.type == "cuda"))
    bar = tqdm(total=config.steps, initial=run.progress.step, desc=folder.name, disable=not run.main, unit="step")
    with bar, Journal(folder, accelerator, run.progress) as log, _stop_requests() as stop:
        while run.progress.step < config.steps:
            log.add(_step(run, batches, seed))
            bar.update()
            if _every(config.log_every, run):
                bar.set_postfix_str(log.write(learning_rate(config, run.progress.step - 1)))
            if _every(config.evaluate_every, run) and run.progress.step < config.steps:
                log.report(_evaluate(run))
                if config.patience is not None and run.progress.best_step == run.progress.step:
                    _save(run)
            if _agreed(run, stop) or _exhausted(run):
                break
            if _every(config.save_every, run) and run.progress.step < config.steps:
                _save(run)
        log.pause()
        finished = run.progress.step >= config.steps
        if finished:
            log.report(_evaluate(run))
        _save(run)
    if run.main and _exhausted(run):
        print(
            f"stopped at step {run.progress.step} of {config.steps}: {run.progress.stale} evaluations were no better "
            f"than {run.progress.best:.4g} at step {run.progress.best_step}, whose model is kept",
            flush=True,
        )
    elif run.main and not finished:
        print(f"stopped at step {run.progress.step} of {config.steps}; --resume goes on from there", flush=True)
    return run.progress


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of step `step`, counted from 0: linear warm-up, then constant or half a cosine to zero."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + float(torch.cos(torch.tensor(share * torch.pi, dtype=torch.float64))))


def latest_state(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a stage's folder."""
    found = sorted((folder / "state").glob("step-*"))
    return found[-1] if found else None


def _prepare(run: Run) -> Run:
    config, accelerator = run.config, run.accelerator
    for name, module in list(run.task.modules.items()):
        module.to(accelerator.device)
        # A sharded module cannot be copied to be judged: an average without a memory follows it where none is kept.
        if config.ema_decay is not None or accelerator.is_fsdp2:
            run.averages[name] = EMA(module, config.ema_decay or 0.0)
            accelerator.register_for_checkpointing(run.averages[name])
        if config.compile:
            getattr(module, "network", module).compile()
        if accelerator.is_fsdp2:
            announce(module, accelerator)
        optimizer = torch.optim.AdamW(_groups(module, config), lr=config.lr, betas=config.betas, fused=True)
        run.task.modules[name], run.optimizers[name] = accelerator.prepare(module, optimizer)
        if accelerator.is_fsdp2:
            cut_parameters(run.averages[name].module, run.task.modules[name])
    accelerator.register_for_checkpointing(run.progress)
    # TensorBoard makes this the name of a folder, the others the name of a project.
    accelerator.init_trackers("tensorboard" if config.tracker == "tensorboard" else "rcg")
    state = latest_state(run.folder)
    if state is not None:
        _check_sharding(state, accelerator)
        accelerator.load_state(str(state))
    return run


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


def _step(run: Run, batches: Iterator[Any], seed: int) -> dict[str, Tensor]:
    """Take one optimizer step for every module that the task trains; return its detached losses."""
    config, accelerator, step = run.config, run.accelerator, run.progress.step
    totals: dict[str, Tensor] = {}
    for micro in range(config.grad_accum_steps):
        torch.manual_seed(fold(seed, "step", step, micro, accelerator.process_index))
        batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in next(batches).items()}
        with accelerator.accumulate(*run.task.modules.values()):
            for name, losses in run.task.losses(batch, step):
                accelerator.backward(torch.stack(list(losses.values())).sum())
                _update(run, name, step)
                for key, value in losses.items():
                    totals[key] = totals.get(key, 0) + value.detach() / config.grad_accum_steps
    run.task.after_step(step)
    for name, average in run.averages.items():
        average.update(accelerator.unwrap_model(run.task.modules[name]))
    run.progress.step += 1
    return totals


def _update(run: Run, name: str, step: int) -> None:
    module, optimizer = run.task.modules[name], run.optimizers[name]
    if run.accelerator.sync_gradients and run.config.grad_clip is not None:
        run.accelerator.clip_grad_norm_(module.parameters(), run.config.grad_clip)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(run.config, step)
    optimizer.step()
    optimizer.zero_grad()


def _every(period: int | None, run: Run) -> bool:
    return period is not None and run.progress.step % period == 0


@torch.no_grad()
def _evaluate(run: Run) -> Report:
    """Judge the models on the main process; the others wait."""
    report = Report({}, {})
    models = run.models()
    if run.main:
        modes = {name: model.training for name, model in models.items()}
        with run.accelerator.autocast():
            report = run.task.evaluate({name: model.eval() for name, model in models.items()}, run.progress.step)
        for name, model in models.items():
            model.train(modes[name])
    run.accelerator.wait_for_everyone()
    if run.config.patience is not None:
        score = torch.tensor(math.inf if report.score is None else report.score, device=run.accelerator.device)
        run.progress.judge(float(broadcast(score)))
    return report


def _exhausted(run: Run) -> bool:
    return run.config.patience is not None and run.progress.stale >= run.config.patience


def _save(run: Run) -> None:
    """Write the resumable state, then the part that other stages load; each appears whole or not at all."""
    states = run.folder / "state"
    target = states / f"step-{run.progress.step:09d}"
    temporary = states / f".{target.name}"
    if run.main:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
    run.accelerator.wait_for_everyone()
    run.accelerator.save_state(str(temporary))
    run.accelerator.wait_for_everyone()
    if run.main:
        temporary.rename(target)
        for old in states.iterdir():
            if old != target:
                shutil.rmtree(old)
    # With early stopping the model of the best evaluation stays.
    if run.config.patience is None or run.progress.best_step in (0, run.progress.step):
        _export(run, run.models())
    run.accelerator.wait_for_everyone()


def _export(run: Run, models: Mapping[str, nn.Module]) -> None:
    if run.main:
        part = run.task.export(models)
        facts = {"step": run.progress.step, "steps": run.config.steps, "seconds": round(run.progress.seconds, 1)}
        checkpoint.save(
            run.folder / checkpoint.FILE,
            checkpoint.Part(part.kind, part.config, {**part.facts, **facts}, part.tensors),
        )


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them."""
    received: list[int] = []
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in signals}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _agreed(run: Run, stop: list[int]) -> bool:
    """Whether any process was asked to stop; several ask each other now and then, so that all stop at one step."""
    if run.accelerator.num_processes == 1:
        return bool(stop)
    if run.progress.step % 10:
        return False
    votes = torch.tensor([len(stop)], device=run.accelerator.device)
    return bool(run.accelerator.gather(votes).sum() > 0)
