"""Moving averages of weights, which evaluations and samplers use instead of the last step's."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from rcg.distributed.fsdp import local_tensor


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
