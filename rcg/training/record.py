"""What a training says of itself: on the screen, in `training.json` of its folder, and in the header of its part."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator
from pydantic import BaseModel
from torch import nn

import rcg
from rcg.config import TrainConfig
from rcg.core.checkpoint import Facts, atomic
from rcg.core.errors import UserError
from rcg.data.images import Split
from rcg.encoding.run_folder import StageFolder


@dataclass(frozen=True)
class Start:
    """One start of a training.

    Attributes:
        images: training images.
        validation: images of the validation split.
        classes: number of labels, 0 without.
        device: name of the device of each process.
        processes: how many there are.
        precision: of the networks.
        parameters: of each module that are trained.
        steps: optimizer steps of the whole training.
        batch_size: samples of a step.
        epochs: passes over the images in these steps.
    """

    images: int
    validation: int
    classes: int
    device: str
    processes: int
    precision: str
    parameters: dict[str, int]
    steps: int
    batch_size: int
    epochs: float

    @classmethod
    def of(cls, config: TrainConfig, images: Split, modules: Mapping[str, nn.Module], accelerator: Accelerator) -> Self:
        """Describe a training of `modules` on `images`."""
        device = accelerator.device
        return cls(
            images=len(images.train),
            validation=len(images.validation),
            classes=len(images.train.classes),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            processes=accelerator.num_processes,
            precision={"no": "float32"}.get(accelerator.mixed_precision, accelerator.mixed_precision),
            parameters={name: _trained(module) for name, module in modules.items()},
            steps=config.steps,
            batch_size=config.batch_size,
            epochs=round(config.steps * config.batch_size / len(images.train), 3),
        )

    def __str__(self) -> str:
        """Return one sentence."""
        classes = f" of {self.classes} classes" if self.classes else ""
        sizes = " + ".join(f"{name} {_millions(count)}" for name, count in self.parameters.items())
        processes = f"{self.processes} x " if self.processes > 1 else ""
        return (
            f"{self.images} images{classes}, {self.validation} more for validation; {sizes} parameters in "
            f"{self.precision} on {processes}{self.device}; {self.steps} steps of {self.batch_size} images, "
            f"{self.epochs:.3g} epochs"
        )


@cache
def program() -> dict[str, str]:
    """Return the versions of rcg and torch, the commit of rcg's repository where it runs in one, and the command."""
    return {
        "rcg": rcg.__version__,
        "commit": _commit(),
        "torch": str(torch.__version__),
        "command": shlex.join(sys.argv),
    }


def record(folder: StageFolder, start: Start, facts: Facts) -> None:
    """Add a start to the records of a stage, and note of which images and neighbors its training is."""
    now = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), **asdict(start), **facts.program}
    content = {"facts": facts.model_dump(mode="json", exclude_defaults=True), "starts": [*_read(folder).starts, now]}
    with atomic(folder.record) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def trained_facts(folder: StageFolder) -> Facts | None:
    """Return what a training recorded of its images and neighbors, None where there is none.

    Raises:
        UserError: the model is damaged, and there is no state from which it would be written again.
    """
    if folder.is_trained:
        try:
            return folder.part(weights=False).facts
        except UserError:
            if not folder.state_files():
                raise
    return _read(folder).facts


class _Records(BaseModel):
    """What `training.json` holds."""

    facts: Facts | None = None
    starts: list[dict[str, Any]] = []


def _read(folder: StageFolder) -> _Records:
    """Return the records of a stage; a file that is damaged, or of another version, counts as none."""
    try:
        return _Records.model_validate_json(folder.record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return _Records()


def _trained(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count >= 1e5 else f"{count:,}"


def _commit() -> str:
    home = Path(rcg.__file__).parents[1]
    if not (home / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
