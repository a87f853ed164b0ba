"""Grids of images that a person can look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from rcg.core.checkpoint import atomic


def to_uint8(image: Tensor) -> Tensor:
    """Round images in [0, 1] to 8 bits (the nearest gray level, not the one below)."""
    return (image.float().clamp(0, 1) * 255).round().to(torch.uint8)


def save_image(image: Tensor, path: Path) -> None:
    """Write one image `(3, H, W)` in [0, 1] as PNG, atomically."""
    _write(Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy()), path)


def grid(images: Tensor, columns: int) -> Tensor:
    """Lay `(N, 3, H, W)` images in [0, 1] out in rows of `columns`, small ones enlarged; returns `(3, H', W')`."""
    scale = _scale(images)
    large = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    return make_grid(large, nrow=columns, padding=2, pad_value=1.0)


def save_gallery(images: Tensor, captions: Sequence[str], title: str, path: Path, columns: int = 8) -> None:
    """Write `(N, 3, H, W)` images in [0, 1] as a titled PNG grid with a caption under each image."""
    scale = _scale(images)
    height, width = (side * scale for side in images.shape[-2:])
    gap, line = 6, 16
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    size = (columns * (width + gap) + gap, rows * (height + line + gap) + 2 * gap + line)
    font = ImageFont.load_default(size=11)
    needed = int(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(title, font=font)) + 2 * gap
    sheet = Image.new("RGB", (max(size[0], needed), size[1]), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), title, fill="black", font=font)
    for i, (image, caption) in enumerate(
        zip(to_uint8(images).permute(0, 2, 3, 1).cpu().numpy(), captions, strict=True)
    ):
        left, top = gap + i % columns * (width + gap), 2 * gap + line + i // columns * (height + line + gap)
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        draw.text((left, top + height), caption, fill=(90, 90, 90), font=font)
    _write(sheet, path)


def save_rows(rows: Mapping[str, Tensor], title: str, path: Path) -> None:
    """Write a titled PNG with a row of images `(n, 3, H, W)` in [0, 1] under each name."""
    pictures = {
        name: Image.fromarray(to_uint8(grid(images, columns=len(images))).permute(1, 2, 0).cpu().numpy())
        for name, images in rows.items()
    }
    gap, line, font = 6, 16, ImageFont.load_default(size=11)
    width = max(int(font.getlength(text)) for text in (title, *rows))
    width = max(width, *(picture.width for picture in pictures.values())) + 2 * gap
    height = gap + line + sum(gap + line + picture.height for picture in pictures.values()) + gap
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), title, fill="black", font=font)
    top = 2 * gap + line
    for name, picture in pictures.items():
        draw.text((gap, top), name, fill=(90, 90, 90), font=font)
        sheet.paste(picture, (gap, top + line))
        top += gap + line + picture.height
    _write(sheet, path)


def _scale(images: Tensor) -> int:
    """Whole factor that brings small images to a side of at least 64 pixels."""
    return max(1, -(-64 // images.shape[-1]))


def _write(picture: Image.Image, path: Path) -> None:
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG")
