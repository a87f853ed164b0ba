"""DiT, the diffusion transformer with adaLN-Zero blocks (Peebles and Xie, ICCV 2023)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from pydantic import Field, NonNegativeInt
from timm.layers import GELUTanh, Mlp, RmsNorm, SwiGLU
from torch import Tensor, nn

from rcg.config import Config, Depth, GeneratorConfig, Side, Width
from rcg.core.contracts import Denoiser, Interface, Space
from rcg.core.errors import UserError
from rcg.core.registry import GENERATORS
from rcg.core.rng import draws
from rcg.diffusion.joint_representation import Pair
from rcg.nn import (
    Attention,
    ConditionEmbedding,
    TimeEmbedding,
    checkpointed,
    matrices,
    rotary_positions,
    sincos_positions,
)

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": GELUTanh, "exact": nn.GELU}
TIME_WIDTH = 256
"""Width of the sinusoidal embedding of the time."""


class RoutingConfig(Config):
    """Token routing (TREAD; Krause et al., ICCV 2025): in training, some patches go past the blocks in the middle.

    A step saves about that share of what those blocks cost. It pays where there are many tokens: what is published has
    256 and more.
    """

    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the patches, drawn anew for each image."""
    first: int = 3
    """Number of the first block that they go past; negative: counted from the last one, which is -1."""
    last: int = -4
    """Number of the last block that they go past."""

    def blocks(self, depth: int) -> range:
        """Return the numbers of these blocks, in a network of `depth` blocks."""
        first, last = (number if number > 0 else depth + 1 + number for number in (self.first, self.last))
        return range(first, last + 1)


class DiTConfig(GeneratorConfig):
    """A diffusion transformer; published sizes are S 384 x 12, B 768 x 12, L 1024 x 24 and XL 1152 x 28."""

    name: str = "dit"
    width: Width = 384
    """Channels of a token."""
    depth: Depth = 12
    """Blocks."""
    heads: Width = 6
    """Attention heads."""
    patch: Side = 2
    """Side of a patch."""
    mlp: Literal["gelu", "swiglu", "conv"] = "gelu"
    """A block's MLP: four times as wide; gated (Shazeer, 2020) with as many parameters; or with a 3 x 3 convolution of
    each hidden channel over the grid of patches (SegFormer; Xie et al., 2021), so that neighbors agree early."""
    gelu: Literal["tanh", "exact"] = "tanh"
    """The GELU: DiT's approximation, or RCG's exact one."""
    norm: Literal["layer", "rms"] = "layer"
    """Norm that the condition modulates: layer norm, or root mean square norm (Zhang and Sennrich, 2019)."""
    qk_norm: bool = False
    """Normalize queries and keys: stable training in low precision."""
    rotary: bool = False
    """Rotate queries and keys by their position, besides the positions that are added to the tokens."""
    value_residual: bool = False
    """Mix the values of every block's attention with those of the first block, by two learned factors a block that
    start at 1/2 (Zhou et al., Value Residual Learning, 2024): deep blocks keep sight of the input."""
    context_tokens: NonNegativeInt = 0
    """Tokens made from the condition that the patches can attend to, besides modulation."""
    routing: RoutingConfig | None = None
    """Token routing in training, which makes a step cheaper; null: without."""


class LocalMlp(nn.Module):
    """An MLP whose hidden channels are filtered over the grid of patches (Mix-FFN of SegFormer; Xie et al., 2021)."""

    def __init__(self, width: int, hidden: int, prefix: int, activation: type[nn.Module]) -> None:
        """Map tokens of `width`, the first `prefix` of which have no place on the grid."""
        super().__init__()
        self.prefix = prefix
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), activation(), nn.Linear(hidden, width)
        self.local = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(B, N, width)` of a square grid, row-major, after the prefix."""
        h = self.fc1(x)
        grid = h[:, self.prefix :]
        side = math.isqrt(grid.shape[1])
        grid = self.local(grid.transpose(1, 2).unflatten(2, (side, side))).flatten(2).transpose(1, 2)
        return self.fc2(self.act(torch.cat([h[:, : self.prefix], grid], dim=1) if self.prefix else grid))


class Block(nn.Module):
    """A transformer block whose norms are modulated by the condition, and which starts as the identity.

    Attributes:
        gives_values: whether it returns the values of its attention too, for later blocks to mix with theirs.
    """

    def __init__(self, config: DiTConfig, number: int, prefix: int) -> None:
        """Build block `number`, from 1 on, for `prefix` tokens before those of the patches."""
        super().__init__()
        width = config.width
        self.norm1, self.norm2 = _norm(config), _norm(config)
        self.gives_values = config.value_residual and number == 1
        mixes = config.value_residual and number > 1
        self.attn = Attention(width, config.heads, qk_norm=config.qk_norm, value_residual=mixes)
        self.mlp: nn.Module
        if config.mlp == "conv":
            self.mlp = LocalMlp(width, 4 * width, prefix, ACTIVATIONS[config.gelu])
        elif config.mlp == "gelu":
            self.mlp = Mlp(width, 4 * width, act_layer=ACTIVATIONS[config.gelu])
        else:
            self.mlp = SwiGLU(width, -(-8 * width // 24) * 8)  # 8 / 3 of the width, in multiples of 8
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x: Tensor, c: Tensor, rotation: Tensor | None = None, first: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Map tokens `x` `(B, N, width)` under the condition `c` `(B, width)`.

        With `gives_values` the values of the attention, `(B, heads, N, d)`, follow; `first` are those of block 1.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        attended, values = self.attn.with_values(self.norm1(x) * (1 + scale1) + shift1, rotation=rotation, first=first)
        x = x + gate1 * attended
        x = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return (x, values) if self.gives_values else x


class RepresentationToken(nn.Module):
    """The token of a representation that is denoised together with an image, as in REG (Wu et al., 2025)."""

    def __init__(self, interface: Interface, z: Space, width: int) -> None:
        super().__init__()
        self.pair, self.inputs, self.outputs = Pair(interface.data, z), interface.inputs, interface.outputs
        (features,) = z.shape
        self.embed = nn.Linear(self.inputs * features, width)
        self.output = nn.Linear(width, self.outputs * features)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images `(B, inputs * C, h, w)` of vectors `(B, inputs * (n + D))`, and a token `(B, 1, width)`."""
        image, z = self.pair.split(x.unflatten(1, (self.inputs, -1)))
        return image.flatten(1, 2), self.embed(z.flatten(1))[:, None]

    def write(self, image: Tensor, token: Tensor) -> Tensor:
        """Put images `(B, outputs, C, h, w)` beside what a token `(B, width)` says of z: `(B, outputs, n + D)`."""
        return self.pair.join(image, self.output(token).unflatten(1, (self.outputs, -1)))


@GENERATORS.register
class DiT(Denoiser):
    """Denoises images or latents `(B, C, h, w)` at times `(B,)` or `(B, 2)`; output `(B, outputs, C, h, w)`.

    With an early exit there are twice as many outputs: those of the exit come second. A representation that is denoised
    together with the data is one more token, before those of the patches.

    Attributes:
        width: channels of a token.

    Raises:
        UserError: the data are tokens, the patch does not divide the side, the heads do not divide the width, or an
            option needs a condition or a block that does not exist.
    """

    Config = DiTConfig
    capabilities = frozenset(
        {"self_condition", "two_times", "grad_checkpointing", "align", "h_space", "early_exit", "joint_representation"}
    )
    positions: Tensor
    rotation: Tensor | None

    def __init__(self, config: DiTConfig, interface: Interface) -> None:
        super().__init__(config, interface)
        _check(config, interface)
        channels, side, _ = interface.data.shape
        width, cond, tokens = config.width, interface.cond, config.context_tokens
        self.width, self.outputs = width, interface.outputs
        self.patch, self.grid = config.patch, side // config.patch
        self.token = RepresentationToken(interface, interface.z, width) if interface.z else None
        self.prefix = tokens + (0 if self.token is None else 1)
        self.grad_checkpointing = config.grad_checkpointing
        self.align_depths = config.align.depths if config.align else ()
        self.routed_share = config.routing.share if config.routing else 0.0
        self.routed_blocks = config.routing.blocks(config.depth) if config.routing else range(0)
        # Tokens and their positions.
        self.patches = nn.Linear(interface.inputs * channels * self.patch**2, width)
        self.register_buffer("positions", sincos_positions(self.grid, width), persistent=False)
        rotation = rotary_positions(self.grid, width // config.heads, self.prefix) if config.rotary else None
        self.register_buffer("rotation", rotation, persistent=False)
        # Time and condition.
        self.time = TimeEmbedding(TIME_WIDTH, width, interface.times)
        self.cond = ConditionEmbedding(cond, width) if cond else None
        self.context = ConditionEmbedding(cond, tokens * width) if cond and tokens else None
        # Blocks and output.
        self.blocks = nn.ModuleList(Block(config, number, self.prefix) for number in range(1, config.depth + 1))
        self.norm = _norm(config)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.output = nn.Linear(width, self.outputs * channels * self.patch**2)
        self.exit_depth = config.early_exit.block if config.early_exit else None
        if config.early_exit:
            self.early_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
            self.early_output = nn.Linear(width, self.output.out_features)
        self._initialize()

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map noisy `x` `(B, inputs * C, h, w)` at times `t` `(B,)` or `(B, 2)` to `(B, outputs, C, h, w)`.

        With a representation, vectors `(B, inputs * (n + D))` become `(B, outputs, n + D)`.
        """
        prefix = []
        if self.token is not None:
            x, token = self.token.read(x)
            prefix.append(token)
        patches = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        h = self.patches(patches) + self.positions  # (B, N, width)
        c = self.time(t)
        if self.cond is not None and cond is not None:
            c = c + self.cond(cond)
        if self.context is not None and cond is not None:
            prefix.append(self.context(cond).unflatten(1, (-1, self.width)))
        if prefix:
            h = torch.cat([*prefix, h], dim=1)
        rotation, first, early = self.rotation, None, None
        features = []
        kept = self._kept(h)
        for depth, block in enumerate(self.blocks, 1):
            if kept is not None and depth == self.routed_blocks[0]:
                everything = h, rotation, first
                h, rotation, first = _take(kept, *everything)
            h = checkpointed(block, h, c, rotation, first, enabled=self.grad_checkpointing)
            if isinstance(h, tuple):
                h, first = h
            if kept is not None and depth == self.routed_blocks[-1]:
                h_before, rotation, first = everything
                h = h_before.scatter(1, kept[..., None].expand_as(h), h)
            if self.training and depth in self.align_depths:
                features.append(h[:, self.prefix :])
            if depth == self.exit_depth:
                early = self._answer(h, c, self.early_modulation, self.early_output)
        self.features = features
        answer = self._answer(h, c, self.modulation, self.output)
        return answer if early is None else torch.cat([answer, early], dim=1)

    @property
    def feature_widths(self) -> list[int]:
        """Channels of the tokens to be aligned."""
        return [self.width] * len(self.align_depths)

    def bottleneck(self, block: int | None = None) -> nn.Module:
        """Return the block `block`, from 1 on, or the middle one; its tokens `(B, N, width)` are the h-space."""
        count = len(self.blocks)
        number = (count + 1) // 2 if block is None else block
        if not 1 <= number <= count:
            raise UserError(f"there is no block {number} in this dit: choose one from 1 to {count}")
        return self.blocks[number - 1]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights of attention and MLPs, but for filters of single channels, which are no matrices."""
        return matrices(self.blocks, but={"modulation"})

    def _kept(self, h: Tensor) -> Tensor | None:
        """Draw the places `(B, n)` of the tokens that go through all blocks; None: all of `h` `(B, N, width)` do.

        Tokens before the patches always do. An estimate without gradients is made as in sampling, with all tokens.
        """
        count, patches = len(h), h.shape[1] - self.prefix
        skipping = int(self.routed_share * patches)
        if not (skipping and self.training and torch.is_grad_enabled()):
            return None
        order = draws().uniform((count, patches), h.device).argsort(dim=1) + self.prefix
        before = torch.arange(self.prefix, device=h.device).expand(count, -1)
        return torch.cat([before, order[:, skipping:]], dim=1)

    def _answer(self, h: Tensor, c: Tensor, modulation: nn.Module, output: nn.Module) -> Tensor:
        """Read outputs `(B, outputs, C, h, w)` off tokens `(B, N, width)`; vectors, where there is a representation."""
        shift, scale = modulation(c)[:, None].chunk(2, dim=-1)
        h = self.norm(h) * (1 + scale) + shift
        patches = output(h[:, self.prefix :])
        image = rearrange(
            patches, "b (h w) (p q k c) -> b k c (h p) (w q)", h=self.grid, p=self.patch, q=self.patch, k=self.outputs
        )
        return image if self.token is None else self.token.write(image, h[:, 0])

    def _initialize(self) -> None:
        """Xavier-uniform matrices, zero biases; modulations and output zero: every block starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        time: Any = self.time
        for embedding in (time[0], time[2]):
            nn.init.normal_(embedding.weight, std=0.02)
        self.time.forget_span()
        blocks: Any = self.blocks
        zeros = [*(block.modulation[1] for block in blocks), self.modulation[1], self.output]
        if self.exit_depth is not None:
            zeros += [self.early_modulation[1], self.early_output]
        if self.token is not None:
            zeros.append(self.token.output)
        for zero in zeros:
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)


def _take(
    places: Tensor, h: Tensor, rotation: Tensor | None, first: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return what a block needs of the tokens at `places` `(B, n)`: themselves, their rotations, their first values."""
    return (
        h.take_along_dim(places[..., None], dim=1),
        None if rotation is None else rotation[places][:, None],
        None if first is None else first.take_along_dim(places[:, None, :, None], dim=2),
    )


def _norm(config: DiTConfig) -> nn.Module:
    if config.norm == "rms":
        return RmsNorm(config.width, eps=1e-6, affine=False)
    return nn.LayerNorm(config.width, elementwise_affine=False, eps=1e-6)


def _check(config: DiTConfig, interface: Interface) -> None:
    data, head_width = interface.data, config.width // config.heads
    if data.vocab is not None:
        raise UserError(f"dit generates real numbers, but {data.id} gives tokens: choose the autoencoder pixels")
    side = data.shape[1]
    if side % config.patch:
        raise UserError(f"generator.patch is {config.patch}, which does not divide the side {side} of its input")
    if config.width % config.heads or config.width % 4:
        raise UserError(f"generator.width is {config.width}; it must be a multiple of 4 and of heads {config.heads}")
    if config.rotary and head_width % 4:
        raise UserError(
            f"generator.rotary needs heads whose width is a multiple of 4, not {head_width}: choose another "
            f"generator.heads"
        )
    if config.value_residual and config.depth == 1:
        raise UserError("generator.value_residual mixes the values of later blocks with the first one's; depth is 1")
    if config.context_tokens and interface.cond is None:
        raise UserError("generator.context_tokens are made from a condition, and generator.condition is none")
    if config.routing:
        _check_routing(config, config.routing.blocks(config.depth))
    if config.early_exit and config.early_exit.block >= config.depth:
        raise UserError(
            f"generator.early_exit.block is {config.early_exit.block}, which is not before the last of {config.depth} "
            f"blocks: choose one from 1 to {config.depth - 1}"
        )
    if config.align:
        config.align.check_depths(config.depth)


def _check_routing(config: DiTConfig, skipped: range) -> None:
    if not 1 < skipped.start < skipped.stop <= config.depth:
        raise UserError(
            f"generator.routing leads past blocks {skipped.start} to {skipped.stop - 1} of {config.depth}, but all "
            f"tokens go through the first and the last one: choose from 2 to {config.depth - 1}, first before last"
        )
    if config.mlp == "conv":
        raise UserError(
            "generator.mlp conv filters the whole grid, but routing takes tokens away: choose gelu or swiglu"
        )
    readers = {
        "align.depth": config.align.depths if config.align else (),
        "early_exit.block": (config.early_exit.block,) if config.early_exit else (),
    }
    for key, blocks in readers.items():
        if set(blocks) & set(skipped[:-1]):
            raise UserError(
                f"generator.{key} is {', '.join(map(str, blocks))}, where routing has taken tokens away: choose blocks "
                f"before {skipped.start}, or from {skipped.stop - 1} on"
            )
