"""Images between images: representations and noise are interpolated, and decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from rcg.core.checkpoint import atomic
from rcg.core.console import say
from rcg.core.errors import UserError
from rcg.editing.curves import along, lerp, path_length, slerp
from rcg.editing.distance import open_distance
from rcg.editing.images import SquareImage
from rcg.pipeline import Code, Pipeline
from rcg.visual.documents import write_json
from rcg.visual.grids import save_gallery, to_pil

CURVES = {"lerp": lerp, "slerp": slerp}
"""How representations are interpolated; noise always turns on great circles."""


@dataclass(frozen=True)
class InterpolationOptions:
    """How to go from image to image.

    Attributes:
        frames: steps from one image to the next.
        curve: of the representations, `lerp` or `slerp`.
        steps: of the sampler.
        seed: of the noise of generators of tokens, the same for all frames.
        guidance: scale in decoding.
    """

    frames: int = 8
    curve: str = "lerp"
    steps: int = 100
    seed: int = 0
    guidance: float = 1.0


def interpolate(pipeline: Pipeline, images: Sequence[SquareImage], options: InterpolationOptions, out: Path) -> Tensor:
    """Write interpolation.png, .webp and .json into `out`, and return the frames `(F, 3, S, S)`.

    Raises:
        UserError: there are fewer than two images.
    """
    if len(images) < 2:
        raise UserError(
            f"an interpolation leads from one image to another, and there is {len(images)}: give two or more"
        )
    code = pipeline.encode(
        torch.stack([image.pixels for image in images]), None if pipeline.has_tokens else options.steps
    )
    frames = decode_path(pipeline, code, options)
    distance = open_distance(pipeline)
    distances = distance(frames[:-1], frames[1:])
    length = path_length(distances, options.frames)
    facts = {"images": [image.name for image in images], **asdict(options), "distance": distance.name}
    figures = {"perceptual_path_length": length, "distances": distances.tolist()}
    write_json(facts | figures, out / "interpolation.json")
    # A row from image to image; it begins with the image that ends the row above.
    strips = [frames[start : start + options.frames + 1] for start in range(0, len(frames) - 1, options.frames)]
    captions = [text for a, b in pairwise(images) for text in (a.name, *[""] * (options.frames - 1), b.name)]
    title = f"{pipeline.config.folder_name} · {options.curve} · perceptual path length {length:.3g}"
    save_gallery(torch.cat(strips), captions, title, out / "interpolation.png", columns=options.frames + 1)
    _save_animation(frames, out / "interpolation.webp")
    say(f"{out / 'interpolation.png'} and {out / 'interpolation.webp'}")
    return frames


def decode_path(pipeline: Pipeline, code: Code, options: InterpolationOptions) -> Tensor:
    """Return the images `(F, 3, S, S)` along curves through codes: `frames` from code to code, and the last one.

    Representations that are normalized one by one stay so: each point of a curve is normalized again.
    """
    z = pipeline.representation.transform.renormalize(along(code.z, CURVES[options.curve], options.frames))
    if code.noise is None:  # every frame from the noise of sample 0: only the meaning changes
        frames = [
            pipeline.decode(Code(row), options.steps, seed=options.seed, indices=[0], guidance=options.guidance)
            for row in z.split(1)
        ]
    else:
        noise = along(code.noise, slerp, options.frames)
        pairs = zip(z.split(16), noise.split(16), strict=True)
        frames = [pipeline.decode(Code(*pair), options.steps, guidance=options.guidance) for pair in pairs]
    return torch.cat(frames).cpu()


def _save_animation(frames: Tensor, path: Path) -> None:
    """Write images as an animation that runs forth and back."""
    pictures = [to_pil(image) for image in torch.cat([frames, frames.flip(0)[1:-1]])]
    with atomic(path) as temporary:
        pictures[0].save(
            temporary, "WEBP", save_all=True, append_images=pictures[1:], duration=80, loop=0, lossless=True
        )
