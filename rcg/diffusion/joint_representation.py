"""Joint sampling: one process generates an image and its representation together (REG; Wu et al., NeurIPS 2025)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rcg.core.contracts import Net, Space
from rcg.diffusion.wrappers import ProcessWrapper


class Pair(NamedTuple):
    """Data and its representation z, side by side in one vector, so that every process and sampler takes both.

    Attributes:
        data: the space of images or latents, of shape `S` and n numbers.
        z: the space of representations, `(D,)`.
        weight: of the loss of z, beside that of the data.
    """

    data: Space
    z: Space
    weight: float = 1.0

    @property
    def space(self) -> Space:
        """The space of the vectors, `(n + D,)`."""
        return Space((math.prod(self.data.shape) + self.z.shape[0],), id=f"{self.data.id} + {self.z.id}")

    def join(self, x: Tensor, z: Tensor) -> Tensor:
        """Put data `(..., *S)` and z `(..., D)` side by side: `(..., n + D)`."""
        return torch.cat([x.flatten(-len(self.data.shape)), z], dim=-1)

    def split(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """Return the data `(..., *S)` and z `(..., D)` in vectors `(..., n + D)`."""
        width = self.z.shape[0]
        return joined[..., :-width].unflatten(-1, self.data.shape), joined[..., -width:]

    def known(self, x: Tensor | None, z: Tensor | None) -> Tensor | None:
        """Return what is to be kept `(B, n + D)`, NaN where it is to be generated, of data or z; None: nothing."""
        if x is None and z is None:
            return None
        given = z if x is None else x
        assert given is not None
        x = given.new_full((len(given), *self.data.shape), torch.nan) if x is None else x
        z = given.new_full((len(given), *self.z.shape), torch.nan) if z is None else z
        return self.join(x, z)


class JointLoss(ProcessWrapper):
    """A process whose losses of data and of z are means over each, for z is a hundredth of the numbers of an image."""

    def __init__(self, process: Any, pair: Pair) -> None:
        """Measure the errors of `process`, a Gaussian process or a flow, in the two parts of vectors of `pair`."""
        super().__init__(process)
        self.pair = pair

    def loss(self, net: Net, x: Tensor, cond: Tensor | None) -> dict[str, Tensor]:
        """Return the losses of the data in `x` `(B, n + D)`, and those of z, weighted, under names with `z_`."""
        t, noise = self.process.draw(x)
        x_t = self.process.corrupt(x, t, noise)
        parts = [self.pair.split(whole) for whole in (net(x_t, t, cond).float(), x, x_t, noise)]
        data, z = (
            self.process.errors(output, clean, noisy, t, eps) for output, clean, noisy, eps in zip(*parts, strict=True)
        )
        return data | {f"z_{name}": self.pair.weight * loss for name, loss in z.items()}
