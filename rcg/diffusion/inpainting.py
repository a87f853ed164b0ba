"""Images completed by a generator: inpainting, outpainting, uncropping; of tokens, reconstruction (as MAGE does)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg.config import GuidanceConfig, SamplerConfig
from rcg.core.contracts import MASK, Autoencoder, Noise
from rcg.core.errors import UserError
from rcg.diffusion.model import GenerativeModel
from rcg.diffusion.repaint import Resampling


def inpaint(
    model: GenerativeModel,
    autoencoder: Autoencoder,
    image: Tensor,
    hole: Tensor,
    cond: Tensor | None,
    noise: Callable[[list[int]], Noise],
    guidance: GuidanceConfig | None = None,
    sampler: SamplerConfig | None = None,
    resampling: Resampling | None = None,
) -> Tensor:
    """Fill the hole of each image, and return images `(B, 3, H, W)` whose other pixels are as they were.

    Generation happens in the generator's space, where the hole takes all the tokens, or cells of latents, that it
    touches. Images of which no cell is known are generated as by `GenerativeModel.sample`.

    Args:
        model: the generator.
        autoencoder: the map between its space and images.
        image: `(B, 3, H, W)` in [0, 1].
        hole: booleans `(B, H, W)`, true where to generate; what is there has no influence.
        cond: the model's condition: `(B, D)` vectors, `(B,)` labels, or None.
        noise: the source of random draws for some rows of the batch.
        guidance: replaces the configured guidance.
        sampler: replaces the configured sampler.
        resampling: how generated parts are fitted to known ones, where the generator is not one of tokens.
    """
    known = known_data(autoencoder, image, hole)
    unknown = known.isnan() if known.is_floating_point() else known == MASK
    whole = unknown.flatten(1).all(1)
    result = image.clone()
    for rows in (whole.nonzero()[:, 0], (~whole).nonzero()[:, 0]):
        if len(rows):
            sample = model.sample(
                None if cond is None else cond[rows],
                noise(rows.tolist()),
                guidance=guidance,
                sampler=sampler,
                known=None if whole[rows[0]] else known[rows],
                resampling=resampling,
            )
            generated, _ = model.split(sample)
            decoded = autoencoder.decode(generated).to(image.dtype)
            result[rows] = torch.where(hole[rows, None], decoded, image[rows])
    return result


def known_data(autoencoder: Autoencoder, image: Tensor, hole: Tensor) -> Tensor:
    """Return what a generator keeps of images `(B, 3, H, W)`: their tokens `(B, h, w)` or latents `(B, C, h, w)`.

    Where a cell touches the hole `(B, H, W)`, tokens are `MASK` and latents NaN. Random latents are their means.
    """
    data = autoencoder.mean(autoencoder.posterior(hide(image, hole)))
    touched = touching(hole, data.shape[-2:])
    if data.is_floating_point():
        return data.masked_fill(touched[:, None], torch.nan)
    return data.masked_fill(touched, MASK)


def touching(hole: Tensor, shape: Sequence[int]) -> Tensor:
    """Return booleans `(B, h, w)`, `shape` is `(h, w)`: true for cells of which any part is in the hole `(B, H, W)`."""
    return F.adaptive_max_pool2d(hole[:, None].float(), tuple(shape))[:, 0] > 0


def hide(image: Tensor, hole: Tensor) -> Tensor:
    """Fill the hole `(B, H, W)` of images `(B, 3, H, W)` with the mean color of the rest, gray where there is none.

    A tokenizer's receptive field reaches beyond a token's square: without this, known tokens would depend on the hole.
    """
    rest = ~hole[:, None]
    count = rest.sum((2, 3), keepdim=True)
    mean = (image * rest).sum((2, 3), keepdim=True) / count.clamp(min=1)
    return torch.where(rest, image, torch.where(count > 0, mean, 0.5))


def box(size: int, left: float, top: float, right: float, bottom: float) -> Tensor:
    """Return booleans `(size, size)`, true inside a box whose edges are shares of the side.

    Raises:
        UserError: the box lies outside of the image or holds no pixel.
    """
    edges = (left, top, right, bottom)
    x0, y0, x1, y1 = (round(size * edge) if math.isfinite(edge) else -1 for edge in edges)
    if not (0 <= x0 < x1 <= size and 0 <= y0 < y1 <= size):
        raise UserError(
            f"a box is left, top, right and bottom edge as rising shares of the side, like 0.25 0.25 0.75 0.75, "
            f"not {left:g} {top:g} {right:g} {bottom:g}"
        )
    inside = torch.zeros(size, size, dtype=torch.bool)
    inside[y0:y1, x0:x1] = True
    return inside


def shrink(image: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Shrink images `(B, 3, S, S)` to a share of the side, in the middle of a hole; return them and `(B, S, S)`.

    Raises:
        UserError: the share leaves nothing of the image, or nothing to generate.
    """
    size = image.shape[-1]
    side = round(share * size) if math.isfinite(share) else 0
    if not 0 < side < size:
        raise UserError(f"an image can be shrunk to a share of its side between 0 and 1, not to {share:g}")
    small = F.interpolate(image, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    before, after = (size - side) // 2, size - side - (size - side) // 2
    hole = torch.ones(len(image), size, size, dtype=torch.bool, device=image.device)
    hole[:, before : size - after, before : size - after] = False
    return F.pad(small, (before, after, before, after), value=0.5), hole
