"""The RDM's residual MLP (RCG: Li, Katabi, He, NeurIPS 2024, Section 3.2 and Figure 4)."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import Depth, RDMConfig, Width
from rcg.core.contracts import Denoiser, Interface
from rcg.core.registry import NETWORKS
from rcg.nn import ConditionEmbedding, TimeEmbedding, matrices


class RepMLPConfig(RDMConfig):
    """The residual MLP; 12 blocks of 1536 as published."""

    name: str = "rep_mlp"
    width: Width = 1536
    """Hidden width."""
    depth: Depth = 12
    """Residual blocks."""
    time_width: Width | None = None
    """Width of the time embedding; null: the representation's."""
    label_width: PositiveInt = 512
    """Width of the class embedding."""


class ResidualBlock(nn.Module):
    """`h + out(in(h) + time [+ condition])`, with a zero-initialized last layer."""

    def __init__(self, width: int, time_width: int, label_width: int | None) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(width)
        self.linear_in = nn.Linear(width, width)
        self.time = nn.Linear(time_width, width)
        self.label = nn.Linear(label_width, width) if label_width else None
        self.norm_out = nn.LayerNorm(width)
        self.linear_out = nn.Linear(width, width)
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)

    def forward(self, h: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        """Map `h` `(B, width)`; `time` and `label` are activated embeddings."""
        inner = self.linear_in(F.silu(self.norm_in(h))) + self.time(time)
        if self.label is not None:
            inner = inner + self.label(label)
        return h + self.linear_out(F.silu(self.norm_out(inner)))


@NETWORKS.register
class RepMLP(Denoiser):
    """Denoises representations `(B, D)` at times `(B,)` or `(B, 2)`; output `(B, outputs, D)`."""

    Config = RepMLPConfig
    capabilities = frozenset({"self_condition", "two_times"})

    def __init__(self, config: RepMLPConfig, interface: Interface) -> None:
        super().__init__(config, interface)
        cond, (dim,) = interface.cond, interface.data.shape
        time_width = config.time_width or dim
        label_width = config.label_width if cond else None
        self.outputs = interface.outputs
        self.time = TimeEmbedding(config.width, time_width, interface.times)
        self.label = ConditionEmbedding(cond, config.label_width) if cond else None
        self.input = nn.Linear(interface.inputs * dim, config.width)
        self.blocks = nn.ModuleList(ResidualBlock(config.width, time_width, label_width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.output = nn.Linear(config.width, self.outputs * dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map noisy `x` `(B, inputs * D)` at times `t` `(B,)` or `(B, 2)`, given `cond`, to `(B, outputs, D)`."""
        time = F.silu(self.time(t))
        label = F.silu(self.label(cond)) if self.label is not None and cond is not None else None
        h = self.input(x)
        for block in self.blocks:
            h = block(h, time, label)
        return self.output(F.silu(self.norm(h))).unflatten(1, (self.outputs, -1))

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights of the two maps of each block."""
        return matrices(self.blocks, but={"time", "label"})
