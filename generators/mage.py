"""MAGE, a masked transformer over tokens (Li et al., CVPR 2023), with a representation in its class slot (RCG)."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.config import Depth, Fraction, GeneratorConfig, GeneratorTrain, GuidanceConfig, Width
from rcg.core.contracts import MASK, Denoiser, Interface
from rcg.core.errors import UserError
from rcg.core.registry import GENERATORS
from rcg.core.rng import draws
from rcg.diffusion.processes.masked import MaskedConfig
from rcg.nn import ConditionEmbedding, Dropout, TransformerBlock, checkpointed, matrices, sincos_positions


class MAGEGuidance(GuidanceConfig):
    """Guidance that grows linearly, as published: RCG's cfg of 1 (MAGE-B) and 6 (MAGE-L) is a scale of 2 and 7."""

    ramp: Literal["constant", "linear", "cosine"] = "linear"


class MAGETrain(GeneratorTrain):
    """The published recipe apart from its length and its batch of 4096 at a rate of 2.4e-3."""

    lr: PositiveFloat = 4e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: NonNegativeInt = 500
    schedule: Literal["constant", "cosine", "wsd"] = "cosine"
    grad_clip: PositiveFloat | None = 3.0


class MAGEConfig(GeneratorConfig):
    """A masked encoder-decoder over the tokens of a vqgan; the defaults suit images of 32 to 128 px.

    Published sizes, as width, depth + decoder_depth (heads, decoder_heads): base 768, 12 + 8 (12, 16); large 1024,
    24 + 8 (16, 16); huge 1280, 32 + 8 (16, 16). All of them work on 16 x 16 tokens.
    """

    defaults = {"process": {"name": "masked"}, "sampler": {"name": "maskgit"}, "autoencoder": {"name": "vqgan"}}

    name: str = "mage"
    width: Width = 384
    """Channels of a token."""
    depth: Depth = 6
    """Blocks of the encoder."""
    heads: Width = 6
    """Attention heads of the encoder."""
    decoder_depth: Depth = 4
    """Blocks of the decoder."""
    decoder_heads: Width = 6
    """Attention heads of the decoder."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout of embeddings, attention and MLPs."""
    tie_embedding_grad: bool = True
    """Let the output's gradient reach the token embeddings, which it shares; as published it does not, and short
    trainings take several times as many steps."""
    min_encoder_tokens: Fraction = 0.25
    """Smallest share of all tokens that the encoder gets outside training: the known ones, then masked ones. 1: all of
    them, as published, which takes longer."""
    guidance: MAGEGuidance = MAGEGuidance()
    train: MAGETrain = MAGETrain()

    @model_validator(mode="after")
    def _refuse_another_process(self) -> MAGEConfig:
        if not isinstance(self.process, MaskedConfig):
            raise ValueError(f"the process is {self.process.name}, but MAGE fills in masked tokens: use masked")
        return self


@GENERATORS.register
class MAGE(Denoiser):
    """Maps tokens `(B, h, w)`, `MASK` where they are unknown, to logits `(B, 1, K, h, w)`; it ignores the time.

    A self-conditioned one gets its last estimate as well, `(B, 2h, w)`; the decoder sees it at the tokens' positions.

    In training the encoder drops as many masked tokens as there always are. They are dropped and brought back by
    sorting and by a product with a matrix of ones and zeros, so that no shape depends on data. In sampling the encoder
    sees every known token, and masked ones, which say little, only up to `min_encoder_tokens`.

    Raises:
        UserError: the autoencoder gives no tokens, or heads or 4 do not divide the width.
    """

    Config = MAGEConfig
    capabilities = frozenset({"self_condition", "grad_checkpointing"})
    scattered: Tensor

    def __init__(self, config: MAGEConfig, interface: Interface) -> None:
        super().__init__(config, interface)
        vocab, width = _check(config, interface), config.width
        assert isinstance(config.process, MaskedConfig)
        self.shape, self.vocab = interface.data.shape, vocab
        self.token_count, self.grad_checkpointing = math.prod(self.shape), config.grad_checkpointing
        self.tie_embedding_grad = config.tie_embedding_grad
        # A network that dropped no tokens in training needs all of them in sampling.
        self.drop_count = config.process.fewest_masked(self.token_count)
        self.min_encoder_tokens = math.ceil((config.min_encoder_tokens if self.drop_count else 1) * self.token_count)
        # Embeddings.
        self.words = nn.Embedding(vocab + 2, width)  # of tokens, of a masked token, of an empty slot
        self.positions = nn.Embedding(self.token_count + 1, width)  # the first is the slot's
        scattered = torch.rand(self.token_count, generator=torch.Generator().manual_seed(0), device="cpu")
        self.register_buffer("scattered", scattered, persistent=False)
        self.norm_in = nn.LayerNorm(width, eps=1e-6)
        self.dropout = Dropout(config.dropout)
        self.cond = ConditionEmbedding(interface.cond, width) if interface.cond else None
        # Encoder.
        self.encoder = nn.ModuleList(TransformerBlock(width, config.heads, config.dropout) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.bridge = nn.Linear(width, width)
        # Decoder.
        self.guess = nn.Linear(width, width) if interface.inputs > 1 else None
        self.decoder_positions = nn.Parameter(torch.zeros(1, self.token_count + 1, width))
        self.decoder = nn.ModuleList(
            TransformerBlock(width, config.decoder_heads, config.dropout) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-5))
        self.bias = nn.Parameter(torch.zeros(vocab))
        self._initialize()

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map tokens `x` `(B, inputs * h, w)`, given `cond`, to logits `(B, 1, K, h, w)`."""
        tokens, *estimates = x.flatten(1).split(self.token_count, dim=1)  # (B, N)
        # Encode the first tokens of an order that puts those to drop last.
        masked = tokens == MASK
        order = self._order(masked)
        length, seen = self._encoder_length(masked)
        positions = order[:, :length]
        encoded = self.encode(tokens.gather(1, positions), positions, cond, seen)
        # Put the encoder's outputs back in place: the slot's, the first, stands for every masked token.
        source = torch.where(masked, 0, order.argsort(dim=1) + 1)
        selection = (source[..., None] == torch.arange(encoded.shape[1], device=x.device)).to(encoded.dtype)
        h = torch.cat([encoded[:, :1], selection @ encoded], dim=1) + self.decoder_positions
        # Decode.
        if self.guess is not None:
            h = h + F.pad(self.guess(self.norm_in(self.words(self._rows(estimates[0])))), (0, 0, 1, 0))
        for block in self.decoder:
            h = checkpointed(block, h, enabled=self.grad_checkpointing)
        h = self.head(self.decoder_norm(h)[:, 1:])
        words = self.words.weight[: self.vocab]
        logits = F.linear(h, words if self.tie_embedding_grad else words.detach(), self.bias)
        return logits.transpose(1, 2).unflatten(2, self.shape)[:, None]

    def encode(self, tokens: Tensor, positions: Tensor, cond: Tensor | None, seen: Tensor | None = None) -> Tensor:
        """Encode tokens `(B, M)` at `positions` `(B, M)`: `(B, 1 + M, width)`, the slot of the condition first.

        Where `seen` `(B, 1 + M)` is false, no token attends to them.
        """
        if self.cond is not None and cond is not None:
            slot = self.cond(cond)[:, None]
        else:
            empty = tokens.new_full((len(tokens), 1), self.vocab + 1)
            slot = self._embed(empty, torch.zeros_like(empty))
        h = torch.cat([slot, self._embed(self._rows(tokens), positions + 1)], dim=1)
        for block in self.encoder:
            h = checkpointed(block, h, seen, enabled=self.grad_checkpointing)
        return self.bridge(self.norm(h))

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights of attention and MLPs."""
        return matrices(self.encoder, self.decoder)

    def _order(self, masked: Tensor) -> Tensor:
        """Return a permutation of the positions for each row of `masked` `(B, N)`: the last are those to drop.

        The known ones come first, then the masked ones: in training at random, in sampling always in the same order,
        so that it is deterministic and leaves the encoder masked tokens from everywhere.
        """
        scattered = draws().uniform(masked.shape, masked.device) if self.training else self.scattered
        return (masked + scattered).argsort(dim=1)

    def _encoder_length(self, masked: Tensor) -> tuple[int, Tensor | None]:
        """Return the number M of tokens that the encoder gets, and the mask of those that each row sees, `(B, 1 + M)`.

        A row's own number of known tokens decides its mask, whatever others are in the batch; null: it sees all.
        """
        if self.training:
            return self.token_count - self.drop_count, None
        if self.min_encoder_tokens == self.token_count:
            return self.token_count, None
        counts = (~masked).sum(dim=1).clamp(min=self.min_encoder_tokens)
        smallest, largest = torch.stack(counts.aminmax()).tolist()
        if smallest == largest:
            return largest, None
        return largest, torch.arange(1 + largest, device=masked.device) <= counts[:, None]

    def _rows(self, tokens: Tensor) -> Tensor:
        """Return rows of the embedding table for tokens `(B, M)`, that of a masked one for `MASK`."""
        return torch.where(tokens == MASK, self.vocab, tokens)

    def _embed(self, rows: Tensor, positions: Tensor) -> Tensor:
        return self.dropout(self.norm_in(self.words(rows) + self.positions(positions)))

    def _initialize(self) -> None:
        """Xavier-uniform matrices, zero biases, normal embeddings of std 0.02, those of labels of std 1.

        Positions, which are learned, start as sines and cosines, as large as the embeddings that they are added to:
        the published ones start as noise of std 0.02, from which a short training does not learn which tokens are
        neighbors.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        if self.guess is not None:
            nn.init.zeros_(self.guess.weight)
        for table in (self.words.weight, self.positions.weight, self.decoder_positions):
            nn.init.normal_(table, std=0.02)
        sinusoids = sincos_positions(self.shape[-1], self.words.embedding_dim)
        with torch.no_grad():
            self.positions.weight[1:] = 0.02 * math.sqrt(2) * sinusoids
            self.decoder_positions[0, 1:] = sinusoids
        if self.cond is not None and isinstance(self.cond.embed, nn.Embedding):
            nn.init.normal_(self.cond.embed.weight)  # as large as the normalized tokens beside it


def _check(config: MAGEConfig, interface: Interface) -> int:
    """Return the size of the vocabulary; raise `UserError` if there is none, or if the widths do not fit."""
    if interface.data.vocab is None:
        raise UserError(f"mage generates tokens, but {interface.data.id} gives real numbers: choose a tokenizer, vqgan")
    for key in ("heads", "decoder_heads"):
        if config.width % getattr(config, key):
            raise UserError(f"generator.width is {config.width}; it must be a multiple of {key}")
    if config.width % 4:
        raise UserError(f"generator.width is {config.width}; positions need a multiple of 4")
    return interface.data.vocab
