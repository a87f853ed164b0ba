"""Flow matching on straight paths (Lipman et al., 2023; Liu et al., 2023)."""

from __future__ import annotations

from rcg.core.registry import PROCESSES
from rcg.diffusion.processes._straight import Straight, StraightConfig


class FlowConfig(StraightConfig):
    """A flow process; by default its network predicts the velocity."""

    name: str = "flow"


@PROCESSES.register
class Flow(Straight):
    """Moves noise to data on straight lines."""

    Config = FlowConfig
