"""The log of a training: means of losses, metrics, sample images."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from pydantic import FiniteFloat, NonNegativeInt
from torch import Tensor

from rcg.core.console import say
from rcg.core.contracts import EvalResult
from rcg.encoding.run_folder import StageFolder
from rcg.training.progress import Progress
from rcg.training.trackers import log_image
from rcg.visual.grids import save_drawing

AT_END = "_at_end"
"""What follows the name of a metric in that of its expected value."""


@dataclass
class LogPosition:
    """Where a log goes on, so that it has the lines of an uninterrupted training."""

    size: NonNegativeInt
    """Bytes of `log.jsonl`; what comes after them is of steps that are taken again."""
    sums: dict[str, FiniteFloat]
    """Losses since the last line, added up."""
    count: NonNegativeInt
    """Number of steps since the last line."""


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
        self.count, self.since = 0, 0.0

    def __enter__(self) -> TrainingLogger:
        self.since = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        # Not end_training: that also disconnects the processes, which may have more to do.
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def position(self) -> LogPosition:
        """Return where the log stands; every process has to ask."""
        sums = {name: float(self.accelerator.reduce(total, "mean")) for name, total in self.sums.items()}
        return LogPosition(self.path.stat().st_size if self.path.is_file() else 0, sums, self.count)

    def restore(self, position: LogPosition) -> None:
        """Drop what was written after `position`, and go on from there."""
        if self.accelerator.is_main_process and self.path.is_file() and self.path.stat().st_size > position.size:
            os.truncate(self.path, position.size)
        self.sums = {name: torch.tensor(s, device=self.accelerator.device) for name, s in position.sums.items()}
        self.count = position.count

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Take note of a step's losses, which stay where they are."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        """Return the means of the losses since the last line, over all processes; every process has to ask."""
        means = {name: self.accelerator.reduce(total / self.count, "mean") for name, total in self.sums.items()}
        return {name: float(value) for name, value in means.items()}

    def write(self, lr: float) -> str:
        """Write one line, the means since the last one, and return a short text for the progress bar."""
        self.pause()
        values = self.means()
        self.sums, self.count = {}, 0
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
            save_drawing(image, self.folder.samples / f"{name}-{self.progress.step:09d}.png")
            log_image(self.accelerator, name, image, self.progress.step)

    def pause(self) -> None:
        """Add the time since the last look to the run's seconds."""
        now = time.perf_counter()
        self.progress.seconds += now - self.since
        self.since = now

    def _line(self, values: dict[str, float]) -> None:
        self.accelerator.log(values, step=self.progress.step)
        if self.accelerator.is_main_process:
            numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
            line = {"step": self.progress.step, "seconds": round(self.progress.seconds, 1), **numbers}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")


def _pretty(metrics: Mapping[str, float]) -> list[str]:
    """Return each metric in words, beside it what it will probably be at the end where that is known."""
    ends = {name: f", about {value:.4g} at the end" for name, value in metrics.items() if name.endswith(AT_END)}
    known = {name: value for name, value in metrics.items() if name not in ends}
    return [f"{name} {value:.4g}{ends.get(name + AT_END, '')}" for name, value in known.items()]
