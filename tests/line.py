"""The smallest training: a line that is fitted in a fraction of a second."""

import json

import torch
from torch import nn

from rcg.config import TrainConfig
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import EvalResult, Task
from rcg.data.loading import TensorDataset
from rcg.distributed.launch import launch
from rcg.encoding.run_folder import StageFolder
from rcg.training.loop import train


class Line(Task):
    """A task that fits y = 2x; `at` maps steps to functions that are called before them, to break something."""

    def __init__(self, at=None):
        torch.manual_seed(0)
        self.modules = {"line": nn.Linear(1, 1)}
        self.data = TensorDataset({"x": torch.linspace(-1, 1, 20)[:, None]})
        self.at = at or {}

    def losses(self, batch, step):
        noise = torch.randn(len(batch["x"]), 1)
        error = (self.modules["line"](batch["x"]) - 2 * batch["x"] + 0.01 * noise).square().mean()
        factor = self.at[step](self) if step in self.at else None
        yield "line", {"error": error if factor is None else error * factor}

    def evaluate(self, models, step):
        return EvalResult({"slope": float(models["line"].weight)}, {"grid": torch.zeros(3, 4, 4)})

    def export(self, models):
        return Part("generator", {}, Facts(), models["line"].state_dict())


class DeathError(Exception):
    """Stands for the end of the process."""


def die(_):
    raise DeathError


def config_for(**changes):
    values = {"steps": 200, "batch_size": 10, "lr": 0.05, "ema_decay": None, "precision": "no", "tracker": "none"}
    return TrainConfig(**values | {"log_every": 20} | changes)


def run(task, config, folder, num_workers=None):
    folder.mkdir(exist_ok=True)
    return train(task, config, StageFolder(folder), launch(config, folder), seed=0, num_workers=num_workers)


def log(folder):
    """Return the lines of a log without their times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
