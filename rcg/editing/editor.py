"""A trained run that takes images apart into codes, and generates images from codes that somebody changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rcg.config import GuidanceConfig, SamplerConfig
from rcg.core.errors import UserError
from rcg.core.registry import SAMPLERS
from rcg.core.rng import SampleNoise
from rcg.diffusion.inversion import invert
from rcg.diffusion.sdedit import FixedFirstDraw
from rcg.encoding.representation import Representation
from rcg.pipeline import Pipeline

UNGUIDED = GuidanceConfig()
"""Guidance leads away from where an image lies: codes are found and decoded without."""


class Code(NamedTuple):
    """What an image is made of.

    Attributes:
        z: what it means, `(B, D)`.
        noise: what z does not say, x_T `(B, *S)`; None: drawn anew from the seed.
    """

    z: Tensor
    noise: Tensor | None = None


class Editor:
    """Encodes images to codes and decodes them, as Diffusion Autoencoders do (Preechakul et al., CVPR 2022).

    Attributes:
        pipeline: the generator; its RDM is not used.
        representation: images -> z.
        sampler: DDIM without fresh noise, at the levels that the inversion visits.
        iterations: network evaluations for each step of the inversion; see `rcg.diffusion.inversion.invert`.
    """

    def __init__(self, pipeline: Pipeline, representation: Representation, steps: int = 100, iterations: int = 4) -> None:
        """Edit with a pipeline and the encoder that its generator was trained with.

        Raises:
            UserError: the generator is not conditioned on the representations of this encoder.
        """
        model = pipeline.generator
        if model.cond != representation.space:
            raise UserError(
                f"editing needs a generator conditioned on representations of {representation.space}, but this one has "
                f"{model.cond or 'no condition'}"
            )
        self.pipeline, self.representation = pipeline, representation.to(pipeline.device)
        self.iterations = iterations
        self.sampler = model.config.sampler
        if not self.sampler.discrete:
            self.sampler = SAMPLERS.get("ddim")(steps=steps)

    @property
    def has_noise(self) -> bool:
        """Whether images have an x_T: not those of a generator of tokens, whose code is z and a seed."""
        return not self.sampler.discrete

    @torch.inference_mode()
    def represent(self, images: Tensor) -> Tensor:
        """Return z `(B, D)` of images `(B, 3, H, W)` in [0, 1]."""
        z: Tensor = self.representation(images.to(self.pipeline.device))
        return z

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Code:
        """Return the codes of images `(B, 3, H, W)` in [0, 1].

        Raises:
            UserError: the generator is one of tokens, which have no x_T.
        """
        if not self.has_noise:
            raise UserError(
                f"{self.pipeline.config.name} generates tokens, and tokens have no noise to recover: the code of an image "
                f"is its representation and a seed"
            )
        model, z = self.pipeline.generator, self.represent(images)
        with self.pipeline.autocast():
            x = self.pipeline.autoencoder.encode(images.to(self.pipeline.device))
            levels = model.process.levels(self.sampler.steps, self.sampler.spacing)
            return Code(z, invert(model.process, model.network, x, z, levels, self.iterations))

    @torch.inference_mode()
    def decode(self, code: Code, seed: int = 0, indices: Sequence[int] | None = None) -> Tensor:
        """Return images `(B, 3, H, W)` in [0, 1] of codes.

        Args:
            code: B of them.
            seed: of the noise, for codes without.
            indices: sample i depends on (seed, i) alone; by default 0 to B - 1.
        """
        noise = SampleNoise(seed, list(indices or range(len(code.z))), "generator", self.pipeline.device)
        return self.pipeline.decode_with(code.z, noise if code.noise is None else FixedFirstDraw(noise, code.noise))
