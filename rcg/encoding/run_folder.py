"""Whose the folder of a stage is: the experiment's whose configuration lies in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from rcg.config import Experiment, TrainConfig, differences, parse
from rcg.core.checkpoint import atomic
from rcg.core.errors import UserError
from rcg.training.loop import latest_state

CONFIG = "config.yaml"
NOT_TRAINED = {"num_workers", "sampler", "guidance"}
"""Keys that change nothing of what is trained."""


def refuse_foreign(
    folder: Path, experiment: Experiment, sections: tuple[str, ...], resume: bool, overwrite: bool
) -> None:
    """Refuse a folder that holds another experiment, or this one when neither --resume nor --overwrite was given."""
    path = folder / CONFIG
    if overwrite or not folder.exists():
        return
    if not path.is_file():
        if any(folder.iterdir()):
            raise UserError(f"{folder} holds files that are not an experiment's: choose another run=")
        return
    there, mine = _stated(path), experiment.model_dump(mode="json")
    old, new = ({key: _essence(_section(values, key)) for key in ("seed", *sections)} for values in (there, mine))
    changed = list(differences(old, new))
    if changed:
        raise UserError(
            f"{folder} holds another experiment ({'; '.join(changed[:3])}): "
            f"choose another run=, or replace it with --overwrite"
        )
    if not resume:
        state = latest_state(folder)
        at = f"step {int(state.name.split('-')[1])} of this experiment" if state else "this experiment"
        raise UserError(f"{folder} already holds {at}: go on with --resume, or start again with --overwrite")


def claim(folder: Path, experiment: Experiment, accelerator: Accelerator, overwrite: bool) -> None:
    """Make `folder` this experiment's: its resolved configuration is written beside the weights."""
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked
    if accelerator.is_main_process:
        if overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        with atomic(folder / CONFIG) as temporary:
            temporary.write_text(experiment.to_yaml())
    accelerator.wait_for_everyone()


def _stated(path: Path) -> Any:
    """Return the values of a file with today's defaults for the keys that were unknown when it was written."""
    values = yaml.safe_load(path.read_text())
    try:
        return parse(values, str(path)).model_dump(mode="json")
    except UserError:
        return values


def _section(values: Any, dotted: str) -> Any:
    """Return the value of a dotted key, None where there is none."""
    for key in dotted.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _essence(value: Any) -> Any:
    """Leave out what may change when a run goes on."""
    if not isinstance(value, dict):
        return value
    skipped = TrainConfig.resumable if "batch_size" in value else NOT_TRAINED
    essence = {key: _essence(item) for key, item in value.items() if key not in skipped}
    if isinstance(essence.get("autoencoder"), dict):
        essence["autoencoder"].pop("train", None)  # a generator minds the space of its latents, not how that was made
    return essence
