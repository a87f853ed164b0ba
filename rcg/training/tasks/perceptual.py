"""The perceptual loss of a generator's estimates of clean images (PixelGen; Ma et al., 2026)."""

from __future__ import annotations

import torch
from torch import Tensor

from rcg.config import PerceptualConfig
from rcg.core.contracts import Autoencoder, Encoder
from rcg.diffusion.estimate_loss import Estimate
from rcg.distributed.launch import gather
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
        """Return the loss `perceptual`: the mean distance over all samples, those with more noise counting as zero.

        Its gradient at the network's output is `weight` times as large as that of the process's loss, over the samples
        of all processes.
        """
        output, count = estimate.output, len(estimate.x)
        total = self._total(estimate)
        (slope,) = torch.autograd.grad(total, output)
        (reference,) = torch.autograd.grad(count * estimate.loss, output, retain_graph=True)
        weight = self.config.weight * balance(_norm(reference), _norm(slope), least=1e-12)
        # Its gradient is known by now. A second way back through the encoder would cost a third of the loss again.
        linear = (weight / count * slope * output).sum()
        return {"perceptual": linear + (weight / count * total - linear).detach()}

    def _total(self, estimate: Estimate) -> Tensor:
        """Return the sum of the distances."""
        seen = estimate.noise <= self.config.until
        if not seen.any():
            return 0 * estimate.output.sum()
        image, real = self.decode(estimate.x0[seen]), self.decode(estimate.x[seen])
        return seen.sum() * self.distance(image, real)


def _norm(gradient: Tensor) -> Tensor:
    """Return the norm of the gradient at the predictions of all processes' samples, given that at outputs."""
    return gather(gradient[:, 0].square().sum()[None]).sum().sqrt()
