"""How far a training is and how good it was: what resuming and early stopping need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Progress:
    """Progress of a training; part of its checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    """The lowest score of an evaluation."""
    best_step: int = 0
    """Its step."""
    stale: int = 0
    """Evaluations since then that were not better."""

    def state_dict(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all fields."""
        for name, value in state.items():
            setattr(self, name, value)

    def note(self, score: float) -> None:
        """Take note of an evaluation's score."""
        if score < self.best:
            self.best, self.best_step, self.stale = score, self.step, 0
        else:
            self.stale += 1
