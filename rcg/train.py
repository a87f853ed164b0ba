"""The one training loop: it knows modules and losses, not modalities."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from accelerate.utils.constants import FSDP_MODEL_NAME
from torch import Tensor, nn
from tqdm import tqdm

from rcg import checkpoint
from rcg.config import TrainConfig
from rcg.contracts import Report, Task
from rcg.errors import UserError
from rcg.gallery import save_image
from rcg.loader import StepKeys, loader
from rcg.randomness import fold
from rcg.sharding import announce, assembled, cut, cut_parameters, shard, whole


class EMA:
    """Moving average of a module's weights, with the warm-up min(decay, (1 + n) / (10 + n)) of the published RDM."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = deepcopy(module).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards `module`, whose parameters may be shards as its own are; buffers are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, weights = ([shard(p.data) for p in m.parameters()] for m in (self.module, module))
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed average needs."""
        state = {name: whole(tensor).cpu() for name, tensor in self.module.state_dict().items()}
        return {"updates": self.updates, "module": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.updates = state["updates"]
        mine = self.module.state_dict()
        self.module.load_state_dict({name: cut(tensor, mine[name]) for name, tensor in state["module"].items()})


@dataclass
class Progress:
    """How far a run is, and how good it was; part of its checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    """The lowest score of an evaluation."""
    best_step: int = 0
    """When that was."""
    stale: int = 0
    """Evaluations since then."""

    def state_dict(self) -> dict[str, Any]:
        """Return all of it."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        for name, value in state.items():
            setattr(self, name, value)

    def judge(self, score: float) -> None:
        """Take note of an evaluation's score."""
        if score < self.best:
            self.best, self.best_step, self.stale = score, self.step, 0
        else:
            self.stale += 1


@dataclass
class Run:
    """One stage in training: what the loop holds between two steps."""

    task: Task
    config: TrainConfig
    folder: Path
    accelerator: Accelerator
    optimisers: dict[str, Any] = field(default_factory=dict)
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

    Every step draws from generators seeded with (seed, step, rank), so that an interrupted run that goes on draws
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
    with bar, _Log(run) as log, _stop_requests() as stop:
        while run.progress.step < config.steps:
            log.add(_step(run, batches, seed))
            bar.update()
            if log.due():
                bar.set_postfix_str(log.write())
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
        if config.ema is not None or accelerator.is_fsdp2:
            run.averages[name] = EMA(module, config.ema or 0.0)
            accelerator.register_for_checkpointing(run.averages[name])
        if config.compile:
            getattr(module, "network", module).compile()
        if accelerator.is_fsdp2:
            announce(module, accelerator)
        optimiser = torch.optim.AdamW(_groups(module, config), lr=config.lr, betas=config.betas, fused=True)
        run.task.modules[name], run.optimisers[name] = accelerator.prepare(module, optimiser)
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
    """Take one optimiser step for every module that the task trains; return its detached losses."""
    config, accelerator, step = run.config, run.accelerator, run.progress.step
    totals: dict[str, Tensor] = {}
    for micro in range(config.accumulate):
        torch.manual_seed(fold(seed, "step", step, micro, accelerator.process_index))
        batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in next(batches).items()}
        with accelerator.accumulate(*run.task.modules.values()):
            for name, losses in run.task.losses(batch, step):
                accelerator.backward(torch.stack(list(losses.values())).sum())
                _update(run, name, step)
                for key, value in losses.items():
                    totals[key] = totals.get(key, 0) + value.detach() / config.accumulate
    run.task.after_step(step)
    for name, average in run.averages.items():
        average.update(accelerator.unwrap_model(run.task.modules[name]))
    run.progress.step += 1
    return totals


def _update(run: Run, name: str, step: int) -> None:
    module, optimiser = run.task.modules[name], run.optimisers[name]
    if run.accelerator.sync_gradients and run.config.clip is not None:
        run.accelerator.clip_grad_norm_(module.parameters(), run.config.clip)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(run.config, step)
    optimiser.step()
    optimiser.zero_grad()


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


class _Log:
    """Averages losses between two lines of `log.jsonl`, and keeps the clock that stands still during evaluations."""

    def __init__(self, run: Run) -> None:
        self.run, self.path = run, run.folder / "log.jsonl"
        self.sums: dict[str, Tensor] = {}
        self.count, self.since = 0, time.perf_counter()

    def __enter__(self) -> _Log:
        if self.run.main:
            self._forget_lost_steps()
        return self

    def __exit__(self, *_: object) -> None:
        # Not end_training: that parts the processes, which may have more to do.
        for tracker in self.run.accelerator.trackers:
            tracker.finish()

    def add(self, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.count += 1

    def due(self) -> bool:
        return _every(self.run.config.log_every, self.run)

    def write(self) -> str:
        """Write one line and return a short text for the progress bar."""
        self.pause()
        means = {name: self.run.accelerator.reduce(total / self.count, "mean") for name, total in self.sums.items()}
        values = {name: float(value) for name, value in means.items()}
        self.sums, self.count = {}, 0
        step = self.run.progress.step
        if not all(torch.isfinite(torch.tensor(value)) for value in values.values()):
            raise UserError(
                f"{self.run.folder}: the loss is not finite at step {step} ({values}); the last checkpoint is kept: "
                f"lower train.lr, set train.clip or train.precision=no, then --resume or start again"
            )
        self._line({**values, "lr": learning_rate(self.run.config, step - 1)})
        return " ".join(f"{name} {value:.4g}" for name, value in values.items())

    def report(self, report: Report) -> None:
        """Write metrics to the log and pictures to the folder; the time that they took does not count as training."""
        self.since = time.perf_counter()
        if not self.run.main:
            return
        if report.metrics:
            self._line(report.metrics)
            tqdm.write("  ".join([f"step {self.run.progress.step}:", *_pretty(report.metrics)]))
        for name, image in report.images.items():
            save_image(image, self.run.folder / "samples" / f"{name}-{self.run.progress.step:09d}.png")

    def pause(self) -> None:
        """Add the time since the last look to the run's seconds."""
        now = time.perf_counter()
        self.run.progress.seconds += now - self.since
        self.since = now

    def _line(self, values: dict[str, float]) -> None:
        self.run.accelerator.log(values, step=self.run.progress.step)
        if self.run.main:
            line = {"step": self.run.progress.step, "seconds": round(self.run.progress.seconds, 1), **values}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _forget_lost_steps(self) -> None:
        """Drop lines that a killed run wrote after its last checkpoint: those steps are taken again."""
        if self.path.is_file():
            lines = [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")]
            kept = [json.dumps(line) for line in lines if line["step"] <= self.run.progress.step]
            with checkpoint.atomic(self.path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept))


def _pretty(metrics: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in metrics.items()]
