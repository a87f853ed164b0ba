"""Grids of images, written as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor
from torchvision.utils import make_grid

from rcg.core.checkpoint import atomic
from rcg.visual.text import Font, drawable, runs

MARK = (("rcg", "drawing"),)
"""What is written into PNG files that are galleries or drawings, so that nobody takes one for a sample."""
_FONT_SIZE = 11
_GAP, _LINE, _ASCENT = 6, 16, 11
"""Distance between two images, height of a line of text, and of its letters above the base line, in pixels."""
WIDEST = 2
"""Most image widths that a caption may take."""


def to_uint8(image: Tensor) -> Tensor:
    """Round images in [0, 1] to 8 bits (the nearest gray level, not the one below)."""
    return (image.float().clamp(0, 1) * 255).round().to(torch.uint8)


def save_image(image: Tensor, path: Path) -> None:
    """Write one image `(3, H, W)` in [0, 1] as PNG, atomically."""
    with atomic(path) as temporary:
        to_pil(image).save(temporary, format="PNG")


def save_drawing(picture: Tensor, path: Path) -> None:
    """Write a picture `(3, H, W)` in [0, 1] that is no image as PNG, atomically, with the mark of drawings."""
    mark = PngImagePlugin.PngInfo()
    for name, value in MARK:
        mark.add_text(name, value)
    with atomic(path) as temporary:
        to_pil(picture).save(temporary, format="PNG", pnginfo=mark)


def is_drawing(picture: Image.Image) -> bool:
    """Whether an opened picture is a gallery or a drawing that this program wrote, no image."""
    return all(picture.info.get(name) == value for name, value in MARK)


def grid(images: Tensor, columns: int) -> Tensor:
    """Arrange images `(N, 3, H, W)` in [0, 1] in rows of `columns`, enlarging small ones; returns `(3, H', W')`."""
    scale = _scale(images)
    large = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    return make_grid(large, nrow=columns, padding=2, pad_value=1.0)


def save_gallery(images: Tensor, captions: Sequence[str], title: str, path: Path, columns: int = 8) -> None:
    """Write the `gallery` of images `(N, 3, H, W)` in [0, 1] as PNG, atomically."""
    save_drawing(gallery(images, captions, title, columns), path)


def gallery(images: Tensor, captions: Sequence[str], title: str, columns: int = 8) -> Tensor:
    """Arrange images `(N, 3, H, W)` in [0, 1] under a title, each above its caption; returns `(3, H', W')` in [0, 1].

    Long captions move the images apart, up to `WIDEST` times their width, and are cut beyond that.
    """
    scale = _scale(images)
    height, width = (side * scale for side in images.shape[-2:])
    widest = min(max(map(_text_width, captions), default=0), WIDEST * width)
    cell_width, cell_height = max(width, widest) + _GAP, height + _GAP + (_LINE if any(captions) else 0)
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    sheet = _Sheet(columns * cell_width - _GAP, rows * cell_height, title)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = _GAP + i % columns * cell_width
        top = sheet.top + i // columns * cell_height
        sheet.image.paste(to_pil(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        sheet.caption(_cut(caption, cell_width - _GAP), left, top + height)
    return sheet.pixels()


def save_rows(rows: Mapping[str, Tensor], title: str, path: Path) -> None:
    """Write a titled PNG with one row of images `(n, 3, H, W)` in [0, 1] under each name."""
    pictures = {name: to_pil(grid(images, columns=len(images))) for name, images in rows.items()}
    width = max([_text_width(name) for name in rows] + [picture.width for picture in pictures.values()])
    sheet = _Sheet(width, sum(_GAP + _LINE + picture.height for picture in pictures.values()), title)
    top = sheet.top
    for name, picture in pictures.items():
        sheet.caption(name, _GAP, top)
        sheet.image.paste(picture, (_GAP, top + _LINE))
        top += _GAP + _LINE + picture.height
    save_drawing(sheet.pixels(), path)


class _Sheet:
    """A white image with a title, and room below it for `width` x `height` pixels from `top` on."""

    def __init__(self, width: int, height: int, title: str) -> None:
        size = (max(width, _text_width(title)) + 2 * _GAP, 2 * _GAP + _LINE + height)
        self.image = Image.new("RGB", size, "white")
        self.top = 2 * _GAP + _LINE
        self._draw = ImageDraw.Draw(self.image)
        self._text(title, _GAP, _GAP, "black")

    def caption(self, text: str, left: int, top: int) -> None:
        self._text(text, left, top, "#5a5a5a")

    def pixels(self) -> Tensor:
        return torch.from_numpy(np.array(self.image)).permute(2, 0, 1) / 255

    def _text(self, text: str, left: float, top: int, color: str) -> None:
        for font, run in runs(drawable(text)):
            face = _face(font)
            self._draw.text((left, top + _ASCENT), run, fill=color, font=face, anchor="ls")
            left += face.getlength(run)


@cache
def _face(font: Font) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font.path, _FONT_SIZE)


def _text_width(text: str) -> int:
    return math.ceil(sum(_face(font).getlength(run) for font, run in runs(drawable(text))))


def _cut(text: str, width: int) -> str:
    """Return as much of a caption as fits into so many pixels."""
    if _text_width(text) <= width:
        return text
    cut = drawable(text)
    while cut and _text_width(cut + "…") > width:
        cut = cut[:-1]
    return cut + "…"


def _scale(images: Tensor) -> int:
    """Return the whole factor that enlarges small images to a side of at least 64 pixels."""
    return max(1, -(-64 // images.shape[-1]))


def to_pil(image: Tensor) -> Image.Image:
    """Return an image `(3, H, W)` in [0, 1] as PIL's."""
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy())
