"""A patch discriminator, its loss, and the weight of the adversarial loss (VQGAN, Esser et al., CVPR 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcg.distributed.launch import gather


class PatchDiscriminator(nn.Module):
    """Scores patches (PatchGAN, Isola et al., CVPR 2017): images `(B, 3, H, W)` in [0, 1] -> `(B, 1, h, w)`.

    Published ones halve 256 px three times; smaller images are halved less often. Groups of channels are normalized
    instead of batches, so that neither samples nor processes depend on each other.
    """

    def __init__(self, width: int, image_size: int) -> None:
        super().__init__()
        halvings = min(3, max(1, int(math.log2(image_size)) - 3))
        widths = [width * min(2**i, 8) for i in range(halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(pairwise(widths)):
            stride = 2 if i + 1 < halvings else 1
            layers += [nn.Conv2d(before, after, 4, stride, padding=1, bias=False)]
            layers += [nn.GroupNorm(math.gcd(32, after), after), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """Return a score for each patch; real patches should score high."""
        scores: Tensor = self.layers(image * 2 - 1)
        return scores


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss of its scores of real and reconstructed patches."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Return |grad of the reconstruction loss| / |grad of the adversarial one| at the last layer (eq. 7), at most 1e4.

    Gradients are averaged over processes first, so that all take the same step.
    """
    norms = []
    for loss in (reconstruction, adversarial):
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        norms.append(gather(gradient[None]).mean(0).norm())
    return balance(norms[0], norms[1], least=1e-4)


def balance(norm: Tensor, other: Tensor, least: float) -> Tensor:
    """Return the weight of a loss, at most 1e4, that makes the norm of its gradient, `other`, as large as `norm`.

    `least` is added to `other`, which may be zero.
    """
    return (norm / (other + least)).clamp(0, 1e4).detach()


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Let gradients pass through `module` without reaching its weights."""
    module.requires_grad_(False)
    try:
        yield module
    finally:
        module.requires_grad_(True)
