"""Grids of images, written as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from rcg.core.checkpoint import atomic

_FONT_SIZE = 11
_GAP, _LINE = 6, 16
"""Distance between two images, and height of a line of text, in pixels."""


def to_uint8(image: Tensor) -> Tensor:
    """Round images in [0, 1] to 8 bits (the nearest gray level, not the one below)."""
    return (image.float().clamp(0, 1) * 255).round().to(torch.uint8)


def save_image(image: Tensor, path: Path) -> None:
    """Write one image `(3, H, W)` in [0, 1] as PNG, atomically."""
    _write(_picture(image), path)


def grid(images: Tensor, columns: int) -> Tensor:
    """Arrange images `(N, 3, H, W)` in [0, 1] in rows of `columns`, enlarging small ones; returns `(3, H', W')`."""
    scale = _scale(images)
    large = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    return make_grid(large, nrow=columns, padding=2, pad_value=1.0)


def save_gallery(images: Tensor, captions: Sequence[str], title: str, path: Path, columns: int = 8) -> None:
    """Write images `(N, 3, H, W)` in [0, 1] as a titled PNG grid with a caption under each image."""
    scale = _scale(images)
    height, width = (side * scale for side in images.shape[-2:])
    cell_width, cell_height = width + _GAP, height + _LINE + _GAP
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    sheet = _Sheet(columns * cell_width - _GAP, rows * cell_height, title)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = _GAP + i % columns * cell_width
        top = sheet.top + i // columns * cell_height
        sheet.image.paste(_picture(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        sheet.caption(caption, left, top + height)
    _write(sheet.image, path)


def save_rows(rows: Mapping[str, Tensor], title: str, path: Path) -> None:
    """Write a titled PNG with one row of images `(n, 3, H, W)` in [0, 1] under each name."""
    pictures = {name: _picture(grid(images, columns=len(images))) for name, images in rows.items()}
    width = max([_text_width(name) for name in rows] + [picture.width for picture in pictures.values()])
    sheet = _Sheet(width, sum(_GAP + _LINE + picture.height for picture in pictures.values()), title)
    top = sheet.top
    for name, picture in pictures.items():
        sheet.caption(name, _GAP, top)
        sheet.image.paste(picture, (_GAP, top + _LINE))
        top += _GAP + _LINE + picture.height
    _write(sheet.image, path)


class _Sheet:
    """A white image with a title, and room below it for `width` x `height` pixels from `top` on."""

    def __init__(self, width: int, height: int, title: str) -> None:
        size = (max(width, _text_width(title)) + 2 * _GAP, 2 * _GAP + _LINE + height)
        self.image = Image.new("RGB", size, "white")
        self.top = 2 * _GAP + _LINE
        self._draw = ImageDraw.Draw(self.image)
        self._draw.text((_GAP, _GAP), title, fill="black", font=_font())

    def caption(self, text: str, left: int, top: int) -> None:
        self._draw.text((left, top), text, fill=(90, 90, 90), font=_font())


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=_FONT_SIZE)


def _text_width(text: str) -> int:
    return int(_font().getlength(text))


def _scale(images: Tensor) -> int:
    """Return the whole factor that enlarges small images to a side of at least 64 pixels."""
    return max(1, -(-64 // images.shape[-1]))


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy())


def _write(picture: Image.Image, path: Path) -> None:
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG")
