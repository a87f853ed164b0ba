"""A plan as a YAML file with comments, which every tool takes, and as lines for the screen."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from rcg.training.planning.folder import FolderFacts
from rcg.training.planning.plan import CURVE_SOURCE, Plan, Speeds

SECTIONS = {
    "run": "Folder of the results.",
    "data": "Pictures; a share of them is held out, to judge by.",
    "encoder": "Image -> representation: learned from these pictures by contrast (MoCo v3).",
    "rdm": "Noise -> representation.",
    "generator": "Representation -> image.",
}
"""What the sections of the file are."""


def describe(plan: Plan, facts: FolderFacts, speeds: Speeds, minutes: float) -> Iterator[str]:
    """Describe a plan, a line at a time."""
    yield f"A plan for {facts.root}: {plan.minutes:.1f} of {minutes:g} minutes on {speeds.machine}."
    yield ""
    yield from facts.lines()
    for warning in plan.warnings:
        yield f"Careful: {warning}."
    yield ""
    yield "Commands, and the minutes that each will take on this machine if nothing else runs:"
    width = max(len(stage.command) for stage in plan.stages)
    for stage in plan.stages:
        steps = f"  {stage.steps} steps" if stage.steps is not None else ""
        yield f"  {stage.command:{width}}  {stage.minutes:5.1f}{steps}"
    if plan.promises:
        yield ""
        yield "What to expect of the generator: validation loss and FD as multiples of those in the last line, from"
        yield f"{CURVE_SOURCE}. There FD scattered by a tenth; another folder may follow another curve:"
        yield "  minute  loss    FD"
        for minute, loss, fd in plan.curve():
            yield f"  {minute:6.1f}  {loss:4.2f}  {fd:4.2f}"
        yield "During training, evaluations of 32 samples or more log fd and what it will be at the end (fd_at_end)."


def as_yaml(plan: Plan, facts: FolderFacts, speeds: Speeds, minutes: float) -> str:
    """Return the file."""
    lines = [f"# {line}".rstrip() for line in describe(plan, facts, speeds, minutes)]
    for name, values in plan.experiment.items():
        lines += ["", f"# {SECTIONS[name]}", yaml.safe_dump({name: values}, sort_keys=False, width=100).rstrip()]
    return "\n".join(lines) + "\n"
