"""Which of the T noise levels a sampler visits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from rcg.config import ComponentConfig
from rcg.contracts import DiscreteProcess
from rcg.errors import UserError


class GridConfig(ComponentConfig):
    """How many levels a sampler visits, and which."""

    steps: Annotated[int, Field(ge=1)] = 50
    """Network evaluations."""
    spacing: Literal["trailing", "leading", "rcg"] = "trailing"
    """Levels visited: evenly from the noisiest on (Lin et al., 2023), evenly from the cleanest on (DDIM's own), or the
    published RDM's (leading, shifted by one, ending at level 0 instead of at clean data)."""
    clip: bool = False
    """Keep every estimate of clean data in [-1, 1]; for pixels, never for representations."""


def levels(process: DiscreteProcess, config: GridConfig) -> list[int]:
    """Return `config.steps` distinct levels, noisiest first; raises `UserError` for more steps than levels."""
    total, steps = process.steps, config.steps
    if steps > total:
        raise UserError(f"sampler.steps is {steps}, but the process has {total} noise levels: give at most that many")
    if config.spacing == "trailing":
        return [total - 1 - i * total // steps for i in range(steps)]
    shift = 1 if config.spacing == "rcg" and steps < total else 0
    return [i * (total // steps) + shift for i in reversed(range(steps))]


def transitions(process: DiscreteProcess, config: GridConfig) -> Iterator[tuple[int, float, float]]:
    """Yield `(t, alpha_bar_t, alpha_bar_s)` for each step from level t to the next cleaner level s."""
    visited = levels(process, config)
    last = float(process.alpha_bar[0]) if config.spacing == "rcg" else 1.0
    after = [float(process.alpha_bar[s]) for s in visited[1:]] + [last]
    for t, alpha_bar_s in zip(visited, after, strict=True):
        yield t, float(process.alpha_bar[t]), alpha_bar_s
