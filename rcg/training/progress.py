"""How far a training is and how good it was: what resuming and early stopping need."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pydantic import FiniteFloat, NonNegativeFloat, NonNegativeInt


@dataclass
class Progress:
    """Progress of a training; part of its state, and equal to another one whatever the time that they took."""

    step: NonNegativeInt = 0
    seconds: NonNegativeFloat = field(default=0.0, compare=False)
    evaluated_step: NonNegativeInt | None = None
    """Step of the last evaluation."""
    best: FiniteFloat | None = None
    """The lowest score of an evaluation; None before there is a finite one."""
    best_step: NonNegativeInt = 0
    """Its step."""
    stale: NonNegativeInt = 0
    """Evaluations since then that were not better."""

    def note(self, score: float) -> None:
        """Take note of an evaluation's score."""
        if score < (math.inf if self.best is None else self.best):
            self.best, self.best_step, self.stale = score, self.step, 0
        else:
            self.stale += 1
