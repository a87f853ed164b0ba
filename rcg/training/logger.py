"""The log of a training: means of losses, metrics, sample images."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from rcg.core import checkpoint
from rcg.core.console import say
from rcg.core.contracts import EvalResult
from rcg.core.errors import UserError
from rcg.encoding.run_folder import StageFolder
from rcg.training.progress import Progress
from rcg.training.trackers import log_image
from rcg.visual.grids import save_image


class TrainingLogger:
    """Averages losses between two lines of `log.jsonl`, and keeps the clock that stands still during evaluations.

    Args:
        folder: of the stage.
        accelerator: the processes, and their trackers.
        progress: of the run; its seconds are counted here.
    """

    def __init__(self, folder: StageFolder, accelerator: Accelerator, progress: Progress) -> None:
        self.folder, self.accelerator, self.progress = folder, accelerator, progress
        self.path = folder.log
        self.sums: dict[str, Tensor] = {}
        self.count, self.since = 0, time.perf_counter()

    def __enter__(self) -> TrainingLogger:
        if self.accelerator.is_main_process:
            self._forget_lost_steps()
        return self

    def __exit__(self, *_: object) -> None:
        # Not end_training: that also disconnects the processes, which may have more to do.
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Take note of a step's losses, which stay where they are."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.count += 1

    def write(self, lr: float) -> str:
        """Write one line, the means since the last one, and return a short text for the progress bar.

        Raises:
            UserError: a loss is not finite any more.
        """
        self.pause()
        means = {name: self.accelerator.reduce(total / self.count, "mean") for name, total in self.sums.items()}
        values = {name: float(value) for name, value in means.items()}
        self.sums, self.count = {}, 0
        step = self.progress.step
        if not all(torch.isfinite(torch.tensor(value)) for value in values.values()):
            raise UserError(
                f"{self.folder.path}: the loss is not finite at step {step} ({values}); the last checkpoint is kept: "
                f"lower train.lr, set train.grad_clip or train.precision=no, then --resume or start again"
            )
        self._line({**values, "lr": lr})
        return " ".join(f"{name} {value:.4g}" for name, value in values.items())

    def report(self, result: EvalResult) -> None:
        """Write metrics to the log and pictures to the folder; the time that they took does not count as training."""
        self.since = time.perf_counter()
        if not self.accelerator.is_main_process:
            return
        if result.metrics:
            self._line(result.metrics)
            say("  ".join([f"step {self.progress.step}:", *_pretty(result.metrics)]))
        for name, image in result.images.items():
            save_image(image, self.folder.samples / f"{name}-{self.progress.step:09d}.png")
            log_image(self.accelerator, name, image, self.progress.step)

    def pause(self) -> None:
        """Add the time since the last look to the run's seconds."""
        now = time.perf_counter()
        self.progress.seconds += now - self.since
        self.since = now

    def _line(self, values: dict[str, float]) -> None:
        self.accelerator.log(values, step=self.progress.step)
        if self.accelerator.is_main_process:
            line = {"step": self.progress.step, "seconds": round(self.progress.seconds, 1), **values}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _forget_lost_steps(self) -> None:
        """Drop lines that a killed run wrote after its last checkpoint: those steps are taken again."""
        if self.path.is_file():
            lines = [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")]
            lasting = [json.dumps(line) for line in lines if line["step"] <= self.progress.step]
            with checkpoint.atomic(self.path) as temporary:
                temporary.write_text("".join(line + "\n" for line in lasting))


def _pretty(metrics: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in metrics.items()]
