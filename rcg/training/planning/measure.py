"""How fast this machine is: a few real steps of each stage of the real experiment, in a run that is thrown away."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from rcg.config import load_experiment
from rcg.core.console import silence
from rcg.distributed.launch import cores, launch
from rcg.encoding.run_folder import Mode, RunFolder
from rcg.encoding.workspace import Workspace, fill_caches
from rcg.pipeline import Pipeline
from rcg.training.planning.folder import FolderFacts
from rcg.training.planning.plan import PIXELS, WIDTHS, Speeds, experiment
from rcg.training.stages import STAGES, run_stage

STEPS = {"encoder": 8, "rdm": 60, "autoencoder": 8, "generator": 12}
"""Steps that are timed; the first third warms up."""
SECTIONS = {"encoder": "encoder", "rdm": "rdm", "autoencoder": "generator.autoencoder", "generator": "generator"}
"""Where each training is configured."""
LIMIT = 400
"""Most images that they are taken with."""
LEAST_SECONDS, MOST_STEPS = 2.0, 2000
"""Least time that is measured, unless so many steps take less: a log counts tenths of seconds."""
SAMPLES = 32
"""Images that are generated."""
SLOW_STEP = 0.25
"""Seconds of a step from which on no wider generator is measured."""


class Clock:
    """Seconds that work takes on a quiet machine: the time that it waits for a core because others run is not counted.

    The waiting is that of the main thread, as Linux counts it; other systems do not say it, and it is taken for none.

    Attributes:
        total: seconds of all that was timed, with the waiting.
        quiet: without.
    """

    def __init__(self) -> None:
        self.total = self.quiet = 0.0

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return the seconds that some work takes without waiting for others."""
        start, waited, used = time.perf_counter(), _waited(), _used()
        work()
        whole = time.perf_counter() - start
        # The main thread waits for this program's own processes, too: the cores cannot have done their work in less.
        quiet = min(whole, max(whole - (_waited() - waited), (_used() - used) / cores()))
        self.total += whole
        self.quiet += quiet
        return quiet


def _waited() -> float:
    """Return the seconds that the main thread was ready to run and had no core; 0 where the system does not say it."""
    try:
        return int(Path("/proc/self/schedstat").read_text(encoding="utf-8").split()[1]) / 1e9
    except OSError:
        return 0.0


def _used() -> float:
    """Return the seconds of cores that this process and those that it has ended took."""
    return sum(os.times()[:4])


def measure(facts: FolderFacts, size: int) -> Speeds:
    """Time every stage at a size; takes about a minute.

    Raises:
        UserError: a stage cannot be trained on these images.
    """
    clock = Clock()
    steps: dict[str, float] = {}
    fixed: dict[str, float] = {}
    generators: dict[int, float] = {}
    sample: dict[int, float] = {}
    latent = 0.0
    with TemporaryDirectory(prefix="rcg-plan-") as folder, silence():
        run = RunFolder(Path(folder) / "run")
        run.path.mkdir()
        file = _write(facts, size, WIDTHS[0], run)
        steps["encoder"], fixed["encoder"] = _train(clock, "encoder", file)
        encode = _encode(clock, file)
        steps["rdm"], fixed["rdm"] = _train(clock, "rdm", file)
        if size > PIXELS:
            steps["autoencoder"], fixed["autoencoder"] = _train(clock, "autoencoder", file)
            latent = _encode_latents(clock, file)
        for width in WIDTHS:
            file = _write(facts, size, width, run)
            generators[width], overhead = _train(clock, "generator", file)
            fixed.setdefault("generator", overhead)
            pipeline = Pipeline.from_pretrained(run.path).to(launch().device)
            sample[width] = clock.seconds(partial(pipeline.sample, SAMPLES)) / SAMPLES
            if generators[width] > SLOW_STEP:
                break
    start = _start_of_a_command()
    return Speeds(start, steps, generators, fixed, encode, latent, sample, clock.total / clock.quiet, _machine())


def _write(facts: FolderFacts, size: int, width: int, run: RunFolder) -> str:
    """Write the experiment of a plan with a few images, whose run is thrown away; return the file."""
    values = experiment(facts, size, width, STEPS)
    values["run"] = str(run.path)
    values["data"]["limit"] = min(LIMIT, facts.images)
    generator = values["generator"]
    for section in (values["encoder"], values["rdm"], generator, generator.get("autoencoder", {"train": {}})):
        section["train"] |= {"log_every": 1, "tracker": "none", "save_every": 10 * MOST_STEPS, "warmup": 0}
    del generator["train"]["evaluate_every"]
    path = run.path.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return str(path)


def _train(clock: Clock, name: str, file: str) -> tuple[float, float]:
    """Train a stage for a few steps, more on a fast machine; return the seconds of a step, and those of all else."""
    stage, steps = STAGES[name], STEPS[name]
    while True:
        chosen = load_experiment(file, [f"{SECTIONS[name]}.train.steps={steps}"])
        folder, config = stage.folder(chosen), stage.train_config(chosen)
        work = Workspace(chosen, launch(config, folder.path, stage.shardable))
        total = clock.total
        whole = clock.seconds(partial(run_stage, stage, work, Mode.OVERWRITE))
        share = whole / (clock.total - total)  # of its time that a quiet machine takes
        times = [line["seconds"] for line in folder.lines() if "lr" in line]
        warm = steps // 3
        taken = share * (times[-1] - times[warm - 1])
        if taken >= LEAST_SECONDS or steps >= MOST_STEPS:
            step = taken / (steps - warm)
            return step, max(0.0, whole - step * steps)
        steps *= 5


def _encode(clock: Clock, file: str) -> float:
    """Fill the cache of representations; return the seconds of a view of an image."""
    work = Workspace(load_experiment(file), launch())
    train, validation = work.images
    seconds = clock.seconds(lambda: [work.z(split) for split in ("train", "validation")])
    return seconds / (len(train) * work.experiment.data.cached_views + len(validation))


def _encode_latents(clock: Clock, file: str) -> float:
    """Fill the cache of latents, where that of representations is full; return the seconds of a view of an image."""
    work = Workspace(load_experiment(file), launch())
    return clock.seconds(lambda: fill_caches(work)) / (len(work.images.train) * work.experiment.data.cached_views)


def _start_of_a_command() -> float:
    """Return the seconds of work until a tool has loaded its libraries."""
    modules = "import rcg.training.stages, rcg.evaluation.gallery, resource"
    code = f"{modules}; print(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cores()} of {os.cpu_count()} CPU cores"
