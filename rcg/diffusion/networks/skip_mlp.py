"""The latent network of Diffusion Autoencoders (Preechakul et al., CVPR 2022): the input enters every layer."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import Depth, RDMConfig, Width
from rcg.core.contracts import Denoiser, Interface
from rcg.core.registry import NETWORKS
from rcg.nn import ConditionEmbedding, TimeEmbedding, matrices


class SkipMLPConfig(RDMConfig):
    """The MLP with skips; 10 layers of 2048 as published for faces, 20 for horses and bedrooms.

    Its authors train it with process: {schedule: constant, predict: eps, loss: l1} and normalize: per_dataset.
    """

    name: str = "skip_mlp"
    width: Width = 2048
    """Hidden width."""
    depth: Annotated[Depth, Field(ge=2)] = 10
    """Layers, the last one included."""
    time_width: Width = 512
    """Width of the time embedding."""
    frequencies: PositiveInt = 64
    """Width of the sinusoids before it."""


class ModulatedLayer(nn.Module):
    """Linear, scaled by the time, normalized, activated."""

    def __init__(self, dim: int, width: int, time_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, width)
        self.scale = nn.Linear(time_width, width)
        self.norm = nn.LayerNorm(width)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """Map `h` `(B, dim)` to `(B, width)`; `time` is the activated embedding."""
        return F.silu(self.norm(self.linear(h) * (1 + self.scale(time))))


@NETWORKS.register
class SkipMLP(Denoiser):
    """Denoises representations `(B, D)` at times `(B,)`; output `(B, outputs, D)`."""

    Config = SkipMLPConfig
    capabilities = frozenset({"self_condition", "two_times"})

    def __init__(self, config: SkipMLPConfig, interface: Interface) -> None:
        super().__init__(config, interface)
        cond, (dim,) = interface.cond, interface.data.shape
        self.outputs = interface.outputs
        self.time = TimeEmbedding(config.frequencies, config.time_width, interface.times)
        self.cond = ConditionEmbedding(cond, config.time_width) if cond else None
        inputs = interface.inputs * dim
        widths = [inputs, *[config.width + inputs] * (config.depth - 2)]
        self.layers = nn.ModuleList(ModulatedLayer(width, config.width, config.time_width) for width in widths)
        self.output = nn.Linear(config.width + inputs, self.outputs * dim)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map noisy `x` `(B, inputs * D)` at times `t` `(B,)` or `(B, 2)`, given `cond`, to `(B, outputs, D)`."""
        time = self.time(t)
        if self.cond is not None and cond is not None:
            time = time + self.cond(cond)
        time = F.silu(time)
        h = x.new_empty(len(x), 0)
        for layer in self.layers:
            h = layer(torch.cat([h, x], dim=1), time)
        return self.output(torch.cat([h, x], dim=1)).unflatten(1, (self.outputs, -1))

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights of all layers but the first, which sees the input alone."""
        return matrices(*self.layers[1:], but={"scale"})
