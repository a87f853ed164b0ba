"""A convolutional autoencoder with a quantized bottleneck: the base of vqgan and vq."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from rcg.core.contracts import Reconstruction
from rcg.core.rng import draws
from rcg.generators.autoencoders._conv import MASKGIT, TAMING, ConvAutoencoder, ConvConfig
from rcg.generators.autoencoders._quantizers import FSQConfig, NearestConfig, build_quantizer

LINEAGES = {"maskgit": MASKGIT, "taming": TAMING}


def _with_name(section: Any) -> Any:
    return {"name": "nearest", **section} if isinstance(section, dict) else section


QuantizerSection = Annotated[
    NearestConfig | FSQConfig, Field(discriminator="name"), BeforeValidator(_with_name, json_schema_input_type=Any)
]


class QuantizedConfig(ConvConfig):
    """A quantized autoencoder."""

    lineage: Literal["maskgit", "taming"] = "maskgit"
    """The network: MaskGIT's VQGAN, as MAGE uses it, or that of taming-transformers and latent diffusion."""
    quantizer: QuantizerSection = NearestConfig()
    """The bottleneck: `nearest`, a codebook, or `fsq`, which needs none."""

    def resolve(self, image_size: int) -> Self:
        """Return the section with everything that follows the image size written out; see the base class."""
        resolved = super().resolve(image_size)
        if isinstance(self.quantizer, FSQConfig) or self.quantizer.codes is not None:
            return resolved
        codes = 1024 if image_size >= 64 else 256 if image_size >= 32 else 64
        return resolved.model_copy(update={"quantizer": self.quantizer.model_copy(update={"codes": codes})})

    @model_validator(mode="before")
    @classmethod
    def _channels_of_levels(cls, value: Any) -> Any:
        """Give the latent as many channels as finite scalar quantization has levels."""
        section = value.get("quantizer") if isinstance(value, dict) else None
        if isinstance(section, dict) and section.get("name") == "fsq":
            levels = section.get("levels", FSQConfig().levels)
            if isinstance(levels, list | tuple):
                value = {"channels": len(levels), **value}
                if value["channels"] != len(levels):
                    raise ValueError(f"channels is {value['channels']}, but quantizer.levels has {len(levels)}")
        return value


class QuantizedAutoencoder(ConvAutoencoder):
    """A convolutional autoencoder with a quantizer."""

    config: QuantizedConfig

    def __init__(self, config: QuantizedConfig, image_size: int) -> None:
        super().__init__(config, image_size, LINEAGES[config.lineage])
        self.quantize = build_quantizer(self.config.quantizer, self.config.channels)

    @property
    def vocab(self) -> int:
        """Number of codes."""
        return self.quantize.vocab

    def forward(self, image: Tensor) -> Reconstruction:
        """Reconstruct images `(B, 3, H, W)` in [0, 1] with gradients; in training mode the codebook follows."""
        z = self.analyze(image)
        with torch.autocast(z.device.type, enabled=False):  # distances in half precision would choose other codes
            quantized, codes, losses = self.quantize(z.movedim(1, -1).flatten(0, -2))
        shape = (len(z), *z.shape[2:])
        latent = quantized.unflatten(0, shape).movedim(-1, 1)
        if self.training and self.config.train.decoder_noise:
            latent = self._disturbed(latent)
        return Reconstruction(self.synthesize(latent), losses, codes.view(shape), z)

    def _disturbed(self, latent: Tensor) -> Tensor:
        """Replace of each image a random share of the quantized vectors `(B, C, h, w)` by random entries."""
        shape = (len(latent), *latent.shape[2:])
        share = draws().normal((len(latent), 1, 1), latent.device).abs() * self.config.train.decoder_noise
        is_replaced = draws().uniform(shape, latent.device) < share
        others = self.quantize.lookup(draws().integers(self.vocab, shape, latent.device)).movedim(-1, 1)
        return torch.where(is_replaced[:, None], others.to(latent.dtype), latent)

    def codes(self, z: Tensor) -> Tensor:
        """Return the codes, int64 `(B, h, w)`, of an output `(B, C, h, w)` of `analyze`."""
        with torch.autocast(z.device.type, enabled=False):
            return self.quantize.codes(z.movedim(1, -1).flatten(0, -2)).view(len(z), *z.shape[2:])

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Map codes `(B, h, w)` to images `(B, 3, H, W)` in [0, 1]; values outside are clamped."""
        return self.synthesize(self.quantize.lookup(codes).movedim(-1, 1)).clamp(0, 1)

    def rename(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a published file under our names."""
        renamed = super().rename(tensors)
        codebook = renamed.get("quantize.codebook")
        if codebook is not None:  # published files do not say how often a code was used
            renamed["quantize.counts"] = torch.ones(len(codebook))
            if isinstance(self.config.quantizer, NearestConfig) and self.config.quantizer.update == "ema":
                renamed["quantize.sums"] = codebook.clone()
        return renamed
