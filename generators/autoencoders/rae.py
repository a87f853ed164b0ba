"""The representation autoencoder: a frozen encoder's patch features, and a decoder that is trained (RAE, Zheng et al.).

Source: Diffusion Transformers with Representation Autoencoders (2025).
"""

from __future__ import annotations

from functools import cached_property
from typing import Self

import torch
from einops import rearrange
from pydantic import model_validator
from torch import Tensor, nn

from rcg.config import Depth, RepresentationAutoencoderConfig, Width
from rcg.core.contracts import Encoder, Reconstruction, Space, TrainableAutoencoder
from rcg.core.errors import UserError
from rcg.core.registry import AUTOENCODERS
from rcg.encoding.autoencoder import space_id
from rcg.encoding.encoder import build_encoder
from rcg.generators.autoencoders._latents import Standardizer, noised
from rcg.nn import TransformerBlock, sincos_positions


class RAEConfig(RepresentationAutoencoderConfig):
    """A representation autoencoder: semantic latents of many channels, which a wide generator learns fast.

    Give the generator the process {name: flow, shift: dimension} and a width above the latent's channels. Published are
    a decoder of width 1152, depth 28 and 16 heads, and train.decoder_noise of 0.8.
    """

    name: str = "rae"
    width: Width = 384
    """Channels of the decoder, a vision transformer."""
    depth: Depth = 6
    """Blocks of the decoder."""
    heads: Width = 6
    """Attention heads of the decoder."""

    @model_validator(mode="after")
    def _refuse_to_train_the_encoder(self) -> Self:
        if self.train.align is not None or self.train.decoder_only:
            option = "decoder_only" if self.train.decoder_only else "align"
            raise ValueError(
                f"train.{option} is of no use to a rae, whose latents are features of a frozen encoder and whose "
                f"decoder alone is trained: leave it out"
            )
        return self


@AUTOENCODERS.register
class RAE(TrainableAutoencoder):
    """Maps images to an encoder's patch features `(B, C, h, w)`, each channel standardized, and these to images.

    Raises:
        UserError: the section names no encoder, or one without a square grid of patches that divides the image, or the
            decoder's sizes do not fit together.
    """

    Config = RAEConfig
    decoder_keys = ("decoder.",)
    standardize: Standardizer

    def __init__(self, config: RAEConfig, image_size: int) -> None:
        encoder = _build_encoder(config, image_size)
        super().__init__(config.model_copy(update={"encoder": encoder.config}), image_size)
        self.encoder = encoder
        rows, columns = encoder.grid or (0, 0)
        if rows == 0 or rows != columns or image_size % rows:
            grid = f"{rows} x {columns}" if rows else "no"
            raise UserError(
                f"generator.autoencoder.encoder {encoder.config.name} has {grid} patches of features, but a rae needs "
                f"a square grid that divides data.image_size={image_size}: choose a vision transformer, another patch "
                f"or input_size"
            )
        if config.width % config.heads or config.width % 4:
            raise UserError(
                f"generator.autoencoder.width is {config.width}; it must be a multiple of 4 and of heads {config.heads}"
            )
        blank = torch.zeros(1, 3, image_size, image_size)
        with torch.no_grad():
            self.channels = encoder.eval().patch_features(blank).shape[-1]
        self.side = rows
        self.standardize = Standardizer(channels=self.channels)
        self.decoder = Decoder(config, self.channels, rows, image_size // rows)
        self.train_decoder_only()

    @cached_property
    def space(self) -> Space:
        """Latents `(C, h, w)`; the weights must not change any more."""
        return Space((self.channels, self.side, self.side), id=space_id(self))

    def adopt(self, encoder: Encoder) -> None:
        """Take over the weights of an encoder of the same configuration."""
        state = encoder.state_dict()
        self.encoder.load_state_dict({name: state[name] for name in self.encoder.state_dict()})

    def forward(self, image: Tensor) -> Reconstruction:
        """Reconstruct images `(B, 3, H, W)` in [0, 1]; gradients reach the decoder alone."""
        with torch.no_grad():
            latent = self.posterior(image)
        noise = self.config.train.decoder_noise if self.training else 0.0
        return Reconstruction(self.decoder(noised(latent, noise)), {}, None, latent)

    def posterior(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to latents `(B, C, h, w)`."""
        features = self.encoder.patch_features(image).float()
        return self.standardize(rearrange(features, "b (h w) c -> b c h w", h=self.side))

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents `(B, C, h, w)` to images `(B, 3, H, W)` in [0, 1]; values outside are clamped."""
        return self.decoder(latent).clamp(0, 1)

    @property
    def last_layer(self) -> Tensor:
        """The weight that both the reconstruction and the discriminator see last."""
        return self.decoder.output.weight

    def rename(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Refuse the tensors of a published file: none is known."""
        raise UserError("a rae starts from files of tools/train_autoencoder.py alone: name one of those")


class Decoder(nn.Module):
    """A vision transformer from features `(B, C, h, w)` to patches of images `(B, 3, H, W)`, nominally in [0, 1]."""

    positions: Tensor

    def __init__(self, config: RAEConfig, channels: int, grid: int, patch: int) -> None:
        super().__init__()
        self.grid, self.patch = grid, patch
        self.tokens = nn.Linear(channels, config.width)
        self.register_buffer("positions", sincos_positions(grid, config.width), persistent=False)
        self.blocks = nn.ModuleList(TransformerBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.output = nn.Linear(config.width, 3 * patch**2)

    def forward(self, latent: Tensor) -> Tensor:
        """Decode."""
        h = self.tokens(latent.flatten(2).transpose(1, 2)) + self.positions  # (B, h * w, width)
        for block in self.blocks:
            h = block(h)
        patches = self.output(self.norm(h))
        image = rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=self.grid, p=self.patch, q=self.patch)
        return (image + 1) / 2


def _build_encoder(config: RAEConfig, image_size: int) -> Encoder:
    """Build the encoder without its head, at random weights: they come from a part, or by `adopt`."""
    if config.encoder is None:
        raise UserError(
            "generator.autoencoder is a rae without an encoder: give its section the key encoder, or load it as part "
            "of an experiment, whose encoder it then has"
        )
    encoder = build_encoder(config.encoder, image_size, load=False)
    encoder.drop_head()
    return encoder
