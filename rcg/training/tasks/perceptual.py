"""The perceptual loss of a generator's estimates of clean images (PixelGen; Ma et al., 2026)."""

from __future__ import annotations

import torch
from torch import Tensor

from rcg.config import PerceptualConfig
from rcg.core.contracts import Autoencoder, Encoder
from rcg.diffusion.estimate_loss import Estimate
from rcg.metrics.perceptual import EncoderDistance
from rcg.training.tasks._discriminator import balance


class PerceptualLoss:
    """The distance of estimates from the clean images in an encoder's features, where there is little noise.

    Args:
        config: its weight, and up to which noise it counts.
        encoder: the frozen encoder.
        autoencoder: maps the generator's data to images.
    """

    def __init__(self, config: PerceptualConfig, encoder: Encoder, autoencoder: Autoencoder) -> None:
        self.config, self.distance, self.decode = config, EncoderDistance(encoder), autoencoder.decode

    def __call__(self, estimate: Estimate) -> dict[str, Tensor]:
        """Return the loss `perceptual`: its value is the mean distance, those of images with more noise being zero.

        Its gradient at the network's output is, for each image, `weight` times as large as that of the process's loss:
        it keeps its share at every noise level, whatever measures the error, and depends on no other image.
        """
        output, count = estimate.output, len(estimate.x)
        total = self._total(estimate)
        (slope,) = torch.autograd.grad(total, output)
        (reference,) = torch.autograd.grad(estimate.loss, output, retain_graph=True)
        weight = self.config.weight * balance(_norms(count * reference), _norms(slope), least=1e-12)
        # The gradient is known by now: a second way back through the encoder would cost a third of the loss again.
        linear = (weight[:, None] * (slope * output).flatten(1)).sum() / count
        return {"perceptual": linear + (total / count - linear).detach()}

    def _total(self, estimate: Estimate) -> Tensor:
        """Return the sum of the distances."""
        seen = estimate.noise <= self.config.until
        if not seen.any():
            return 0 * estimate.output.sum()
        image, real = self.decode(estimate.x0[seen]), self.decode(estimate.x[seen])
        return seen.sum() * self.distance(image, real)


def _norms(gradient: Tensor) -> Tensor:
    """Return the norms `(B,)` at each image's prediction of a gradient at outputs `(B, outputs, *S)`."""
    return gradient[:, 0].flatten(1).norm(dim=1)
