"""Moving averages of weights, which evaluations and samplers use instead of the last step's."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from rcg.distributed.fsdp import full_tensor, local_tensor, shard_tensor


class EMA:
    """Moving average of a module's weights, with the warm-up min(decay, (1 + n) / (10 + n)) of the published RDM."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = deepcopy(module).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average toward `module`, whose parameters may be shards as its own are; buffers are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, weights = ([local_tensor(p.data) for p in m.parameters()] for m in (self.module, module))
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, current in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(current)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed average needs."""
        state = {name: full_tensor(tensor).cpu() for name, tensor in self.module.state_dict().items()}
        return {"updates": self.updates, "module": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.updates = state["updates"]
        own = self.module.state_dict()
        self.module.load_state_dict({name: shard_tensor(tensor, own[name]) for name, tensor in state["module"].items()})
