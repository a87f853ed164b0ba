"""DiT, the diffusion transformer with adaLN-Zero blocks (Peebles and Xie, ICCV 2023)."""

from __future__ import annotations

from typing import Any, Literal

from einops import rearrange
from pydantic import PositiveInt
from timm.layers import GELUTanh, Mlp
from torch import Tensor, nn

from rcg.config import GeneratorConfig
from rcg.contracts import Space
from rcg.errors import UserError
from rcg.nn import Attention, ConditionEmbedding, sincos_positions, timestep_embedding
from rcg.registry import GENERATORS

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": GELUTanh, "exact": nn.GELU}


class DiTConfig(GeneratorConfig):
    """A diffusion transformer; published sizes are S 384 x 12, B 768 x 12, L 1024 x 24 and XL 1152 x 28."""

    name: str = "dit"
    width: PositiveInt = 384
    """Channels of a token."""
    depth: PositiveInt = 12
    """Blocks."""
    heads: PositiveInt = 6
    """Attention heads."""
    patch: PositiveInt = 2
    """Side of a patch."""
    gelu: Literal["tanh", "exact"] = "tanh"
    """The MLP's activation: DiT's approximation, or RCG's exact one."""


class Block(nn.Module):
    """A transformer block whose norms are modulated by the condition, and which starts as the identity."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, config.heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, 4 * width, act_layer=ACTIVATIONS[config.gelu])
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map tokens `x` `(B, N, width)` under the condition `c` `(B, width)`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


@GENERATORS.register
class DiT(nn.Module):
    """Denoises images or latents `(B, C, h, w)` at integer times `(B,)`; output `(B, heads, C, h, w)`.

    Raises:
        UserError: the data are tokens, the patch does not divide the side, or the heads do not divide the width.
    """

    Config = DiTConfig
    positions: Tensor

    def __init__(self, config: DiTConfig, data: Space, cond: Space | None, heads: int) -> None:
        super().__init__()
        if data.vocab is not None:
            raise UserError(f"dit paints with real numbers, but {data.id} gives tokens: choose the autoencoder pixels")
        channels, side, _ = data.shape
        if side % config.patch:
            raise UserError(f"generator.patch is {config.patch}, which does not divide the side {side} of its input")
        if config.width % config.heads or config.width % 4:
            raise UserError(
                f"generator.width is {config.width}; it must be a multiple of 4 and of heads {config.heads}"
            )
        self.patch, self.grid, self.heads = config.patch, side // config.patch, heads
        self.patches = nn.Linear(config.inputs * channels * config.patch**2, config.width)
        self.register_buffer("positions", sincos_positions(self.grid, config.width), persistent=False)
        self.time = nn.Sequential(nn.Linear(256, config.width), nn.SiLU(), nn.Linear(config.width, config.width))
        self.cond = ConditionEmbedding(cond, config.width) if cond else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 2 * config.width))
        self.output = nn.Linear(config.width, heads * channels * config.patch**2)
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map noisy `x` `(B, C, h, w)` at times `t` `(B,)`, given `cond`, to `(B, heads, C, h, w)`."""
        tokens = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        h = self.patches(tokens) + self.positions  # (B, N, width)
        c = self.time(timestep_embedding(t, 256))
        if self.cond is not None and cond is not None:
            c = c + self.cond(cond)
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)
        h = self.output(self.norm(h) * (1 + scale) + shift)
        return rearrange(
            h, "b (h w) (p q k c) -> b k c (h p) (w q)", h=self.grid, p=self.patch, q=self.patch, k=self.heads
        )

    def _initialise(self) -> None:
        """Xavier-uniform matrices, zero biases; modulations and output zero: every block starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        linear: Any = self.time
        for embedding in (linear[0], linear[2]):
            nn.init.normal_(embedding.weight, std=0.02)
        blocks: Any = self.blocks
        for zero in (*(block.modulation[1] for block in blocks), self.modulation[1], self.output):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)
