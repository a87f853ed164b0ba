"""The layout of a run's folder, and which experiment each of its stages belongs to.

Files inside the folder of a report are named where they are written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from rcg.config import Experiment, differences, load_experiment
from rcg.core import checkpoint, pretrained
from rcg.core.checkpoint import Part, atomic
from rcg.core.errors import UserError, nearest, nearest_file

SHARED_STAGES = ("encoder", "autoencoder", "rdm")
"""The stages that all generators of a run share, in the order of training."""


_STATE = re.compile(r"step-\d{1,18}\.safetensors")


class Mode(Enum):
    """What a training does with a folder that is not empty."""

    START = "refuse it"
    RESUME = "go on from the last checkpoint"
    OVERWRITE = "replace it"


class StageFolder:
    """The folder of one stage: the trained part, the state of its training, its log and samples."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self.checkpoint = path / "model.safetensors"
        self.snapshot = path / "snapshot.safetensors"
        """The trained part as it was after `train.snapshot` of its steps."""
        self.config = path / "config.yaml"
        self.log = path / "log.jsonl"
        self.record = path / "training.json"
        self.samples = path / "samples"
        self.states = path / "state"
        self.original = path / "original.safetensors"
        """Beside a converted part: tensors that only the original format needs."""
        # All that a training or a converter leaves, but the configuration: without it the folder would be a stranger's.
        files = [self.checkpoint, self.snapshot, self.log, self.record, self.original]
        self._left_behind = [*files, self.states, self.samples, path / "tensorboard"]

    @property
    def is_trained(self) -> bool:
        """Whether there is a trained part."""
        return self.checkpoint.is_file()

    def part(self, weights: bool = True) -> Part:
        """Read the trained part, with or without its weights; raises `UserError` where there is none."""
        return checkpoint.load(self.checkpoint, self._kind, weights=weights)

    def weaker_part(self, named: Path | str) -> Part:
        """Read a part to guide away from: `snapshot`, that of this training, or the one that `find_part` finds.

        Raises:
            UserError: there is none.
        """
        if named != "snapshot":
            return checkpoint.load(find_part(named, self._kind, f"--weak is {named}", self.name), self._kind)
        if not self.snapshot.is_file():
            raise UserError(
                f"--weak is snapshot, but {self.path} holds none: train with train.snapshot=0.1, or give the run or "
                f"the file of a worse {self._kind}"
            )
        return checkpoint.load(self.snapshot, self._kind)

    @property
    def _kind(self) -> str:
        return self.name if self.name in SHARED_STAGES else "generator"

    def state_file(self, step: int) -> Path:
        """Return the file of the training's state after `step` steps."""
        return self.states / f"step-{step:09d}.safetensors"

    def state_files(self) -> list[Path]:
        """Return the files of the training's states, newest first."""
        files = [path for path in self.states.glob("step-*.safetensors") if _STATE.fullmatch(path.name)]
        return sorted(files, key=self.step_of, reverse=True)

    @property
    def step(self) -> int:
        """The step of the newest state; 0 where there is none."""
        states = self.state_files()
        return self.step_of(states[0]) if states else 0

    @staticmethod
    def step_of(state: Path) -> int:
        """Return the step of a state by the name of its file."""
        return int(state.stem.removeprefix("step-"))

    def lines(self) -> list[dict[str, float]]:
        """Return the lines of the log; none where there is no log."""
        return list(_lines(self.log)) if self.log.is_file() else []

    def experiment(self) -> Experiment | None:
        """Return the experiment that this stage belongs to, as it was configured; None where that is not known."""
        return load_experiment(self.config) if self.config.is_file() else None

    def check(self, identity: Callable[[Experiment], dict[str, Any]], experiment: Experiment, mode: Mode) -> None:
        """Refuse a folder that this training cannot use, or where the mode does not say what to do with its content.

        Args:
            identity: returns the part of an experiment that decides the stage's result.
            experiment: the experiment that asks for the folder.
            mode: what to do with a folder that is not empty.

        Raises:
            UserError: the folder is somebody else's, or a decision is missing, or there is nothing to go on from.
        """
        if mode == Mode.OVERWRITE:
            self._check_ours(self._left_behind)
            return
        self.check_identity(identity, experiment)
        states = self.state_files()
        if mode == Mode.RESUME and not states:
            self._check_beginning()
        if mode == Mode.START and self.config.is_file():
            content = f"step {self.step_of(states[0])} of this experiment" if states else "this experiment"
            raise UserError(
                f"{self.path} already holds {content}: go on with --resume, or start again with --overwrite"
            )

    def check_identity(self, identity: Callable[[Experiment], dict[str, Any]], experiment: Experiment) -> None:
        """Refuse a folder that holds another experiment, or other files; raises `UserError`."""
        self._check_ours()
        saved = self.experiment()
        changed = [] if saved is None else list(differences(identity(saved), identity(experiment)))
        if changed:
            raise UserError(
                f"{self.path} holds another experiment ({'; '.join(changed[:3])}): if it was trained with overrides, "
                f"repeat them, or give {self.config} instead of the file; else choose another run=, or replace it "
                f"with --overwrite"
            )

    def claim(self, experiment: Experiment, mode: Mode, accelerator: Accelerator) -> None:
        """Make the folder this experiment's: its resolved configuration is written beside the weights.

        With `Mode.OVERWRITE` what a training leaves here is deleted first, and nothing else.
        """
        accelerator.wait_for_everyone()  # nobody writes before everybody has looked
        if accelerator.is_main_process:
            if mode == Mode.OVERWRITE:
                for path in self._left_behind:
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
            with atomic(self.config) as temporary:
                temporary.write_text(experiment.to_yaml(), encoding="utf-8")
        accelerator.wait_for_everyone()

    def _check_ours(self, known: Sequence[Path] = ()) -> None:
        """Refuse a path that is no folder, and a folder that no experiment has left; `known` files may be in it."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file, but a folder is needed: choose another run=")
        if self.path.is_dir() and not self.config.is_file():
            foreign = [path for path in self.path.iterdir() if not path.name.startswith(".") and path not in known]
            if foreign:
                raise UserError(f"{self.path} holds files that are not an experiment's: choose another run=")

    def _check_beginning(self) -> None:
        """Refuse to start from nothing where something was trained."""
        old = sorted(path for path in self.states.glob("step-*") if path.is_dir())
        if old:
            raise UserError(
                f"{old[-1]} was written by an older version of rcg, and is not opened because such states may hold "
                f"code: go on with that version, or start again with --overwrite"
            )
        if self.is_trained:
            raise UserError(
                f"{self.checkpoint} is of step {self.part(weights=False).facts.step}, but {self.states} holds no state "
                f"to go on from: start again with --overwrite, or choose another run="
            )


class RunFolder:
    """The folder of a run: `RUN/encoder`, `RUN/autoencoder`, `RUN/rdm`, one folder for each generator, and results."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.encoder, self.autoencoder, self.rdm = (StageFolder(self.path / name) for name in SHARED_STAGES)
        self.cache = self.path / "cache"
        """Representations and latents of the data set."""
        self.fitted_folder = self.path / "fitted"
        self.evaluation = self.path / "evaluation"
        self.representations = self.path / "representations"
        self.encoder_report = self.path / "encoder-report"
        self.gallery = self.path / "gallery"
        self.inpainting = self.path / "inpaint.png"
        self.reconstruction = self.path / "reconstruction"
        self.interpolation = self.path / "interpolation"
        self.attributes = self.path / "attributes"
        """Directions of z along which properties of images change."""
        self.edits = self.path / "edits"
        self.curves = self.path / "curves.png"
        self.distances = self.path / "distances.png"
        """The Frechet distances of generators against minutes, with the curves that they are expected to follow."""
        self.log = self.path / "log.txt"
        """What the trainings said, with the time."""
        self.page = self.path / "report.html"

    def stage_folder(self, name: str) -> StageFolder:
        """Return the folder of a stage, or of the generator called `name` (`dit`, `mage-class`)."""
        return StageFolder(self.path / name)

    def comparison(self, generator: str) -> Path:
        """Return the folder for a comparison of conditions of a generator."""
        return self.path / f"comparison-{generator}"

    def generators(self) -> list[StageFolder]:
        """Return the folders of the trained generators."""
        stages = [StageFolder(path.parent) for path in sorted(self.path.glob("*/model.safetensors"))]
        return [stage for stage in stages if stage.name not in SHARED_STAGES]

    def choose_generator(self, name: str | None) -> StageFolder:
        """Return the folder of the generator called `name`, or of the only one.

        Raises:
            UserError: there is none, or there are several and none is named.
        """
        known = [stage.name for stage in self.generators()]
        if name is not None and name not in known:
            raise UserError(f"{self.path} holds no generator {name!r}; {nearest(name, known)}")
        if not known:
            raise self._nothing("generator", "tools/train_pixel.py")
        if name is None and len(known) > 1:
            raise UserError(f"{self.path} holds several generators ({', '.join(known)}): choose one with --generator")
        return self.stage_folder(name or known[0])

    def logs(self) -> dict[str, list[dict[str, float]]]:
        """Return the lines of all stages' logs, in the order of training; a stage without lines is left out.

        Raises:
            UserError: nothing was trained here.
        """
        stages = [StageFolder(path.parent) for path in sorted(self.path.glob("*/log.jsonl"))]
        stages.sort(
            key=lambda stage: SHARED_STAGES.index(stage.name) if stage.name in SHARED_STAGES else len(SHARED_STAGES)
        )
        logs = {stage.name: lines for stage in stages if (lines := stage.lines())}
        if not logs:
            raise self._nothing("stage", "tools/train_encoder.py")
        return logs

    def _nothing(self, what: str, tool: str) -> UserError:
        """Return the error of a folder that holds no trained generator or stage, with the run that may be meant."""
        path = self.path
        if not path.exists():
            return UserError(f"there is no run {path}; {nearest_file(path)}")
        if not path.is_dir():
            return UserError(f"{path} is a file: give the folder of its run")
        if self.stage_folder(".").is_trained or self.stage_folder(".").log.is_file():
            return UserError(f"{path} is the folder of one stage: give that of its run, {path.parent}")
        runs = list(dict.fromkeys(str(part.parent.parent) for part in sorted(path.glob("*/*/model.safetensors"))))
        if runs:
            return UserError(f"{path} is no run, but holds some: give one of them ({', '.join(runs[:5])})")
        return UserError(f"{path} holds no trained {what}: run {tool} first")

    def fitted(self, what: str, facts: Mapping[str, Any]) -> Path:
        """Return the file of something that was fitted to representations, named by what decides it."""
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
        return self.fitted_folder / f"{what}-{name}.safetensors"


def find_part(named: Path | str, kind: str, asked: str, generator: str | None = None) -> Path:
    """Return the file of a part: itself, or that in a stage's folder, in a run, or in what `save_pretrained` wrote.

    Args:
        named: a path.
        kind: of the part.
        asked: what a person gave, for people.
        generator: name of the generator's folder in a run that has several; None: there has to be one.

    Raises:
        UserError: it is not there.
    """
    path = Path(os.path.expanduser(named))
    if not path.is_dir():
        if path.is_file():
            return path
        hint = nearest_file(path, *(pretrained.ENDINGS if path.suffix else ()))
        raise UserError(f"{asked}, which is not there; {hint}")
    run = RunFolder(path)
    if (path / f"{kind}.safetensors").is_file():
        return path / f"{kind}.safetensors"
    if StageFolder(path).is_trained:
        return StageFolder(path).checkpoint
    if kind == "generator":
        known = [stage.name for stage in run.generators()]
        return run.choose_generator(generator if generator in known else None).checkpoint
    stage = run.stage_folder(kind)
    if not stage.is_trained:
        raise UserError(f"{asked}, a folder that holds no trained {kind}")
    return stage.checkpoint


def _lines(log: Path) -> Iterator[dict[str, float]]:
    """Yield the lines of a log; what a killed training left of a line, and values that are no numbers, are left out."""
    for text in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            values = {name: value for name, value in line.items() if isinstance(value, int | float)}
            if {"step", "seconds"} <= set(values):
                yield values
