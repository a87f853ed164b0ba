"""The base of processes that change another one: guidance, self-conditioning, truncation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rcg.core.contracts import Level, Net


class ProcessWrapper:
    """A process that does what another one does; subclasses change a part of it.

    Attributes:
        process: the other one.
        outputs: network outputs per data element.
        horizon: upper end of the times.
    """

    def __init__(self, process: Any) -> None:
        """Wrap `process`, a `Process`."""
        self.process = process
        self.outputs: int = process.outputs
        self.horizon: float = process.horizon

    def loss(self, net: Net, x: Tensor, cond: Tensor | None) -> dict[str, Tensor]:
        """Return the losses of the wrapped process."""
        losses: dict[str, Tensor] = self.process.loss(net, x, cond)
        return losses

    def levels(self, steps: int, *spacing: str) -> list[Level]:
        """Return the levels of the wrapped process."""
        levels: list[Level] = self.process.levels(steps, *spacing)
        return levels

    def matching(self, level: Level) -> Level:
        """Return the level of the wrapped process."""
        matched: Level = self.process.matching(level)
        return matched

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Any:
        """Evaluate the network as the wrapped process does."""
        return self.process.predict(net, x, level, cond)

    def read(self, output: Tensor, x: Tensor, t: Tensor) -> Any:
        """Read an output as the wrapped process does."""
        return self.process.read(output, x, t)
