"""One picture: what Pillow opens, a file or its bytes, as RGB, and the kinds of files that are pictures."""

from __future__ import annotations

import errno
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from rcg.core.errors import UserError

T = TypeVar("T")

Opened = Path | IO[bytes]
"""What Pillow opens."""

UNDECODABLE = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow recognizes, but cannot decode."""
PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".avif": "'pillow>=11.3'", ".jxl": "pillow-jxl-plugin"}
"""Packages that teach Pillow a format, by the ending of its files."""
TRANSIENT = {errno.EIO, errno.ESTALE, errno.EINTR, errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENETDOWN}
"""Errors of disks on a network that often pass."""
PAUSES = (0.1, 0.5, 2.0)
"""Seconds to wait before a read is tried again."""
_SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_OTHER_ORDER = {
    f"{mode};16{order}": f"{mode};16{other}" for mode in ("RGB", "RGBA") for order, other in _SWAPPED.items()
}
"""Pillow's names for 16 bits of each color, and of the same with their bytes in the other order."""


@cache
def picture_endings() -> frozenset[str]:
    """Return the endings, in lower case, of the files that Pillow decodes, with the plug-ins that are installed."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401 (it registers itself)
    formats = Image.registered_extensions().items()
    return frozenset(end for end, kind in formats if kind in Image.OPEN and kind not in UNDECODABLE)


def is_picture(name: str) -> bool:
    """Whether a file of this name is read as a picture."""
    return os.path.splitext(name)[1].lower() in picture_endings()


def read_picture(path: Path) -> Tensor:
    """Read the picture in a file; see `decoded`."""
    return decoded(lambda: path, path)


def decoded(open_file: Callable[[], Opened], place: str | Path) -> Tensor:
    """Read a picture of any kind as RGB `(3, H, W)`: uint8, or float32 in [0, 1] for 16 bits.

    Transparent pictures get a white background, animations give their first frame, and a camera's orientation is
    applied. A read that fails for a moment, as on network disks, is tried again.

    Args:
        open_file: returns what Pillow opens.
        place: where the picture is, for the message.

    Raises:
        UserError: it is missing, damaged, too large, or its white level is undefined.
    """
    picture_endings()  # plug-ins open files by their content
    try:
        return retried(lambda: _read(open_file()))
    except Exception as error:  # decoders of damaged files raise whatever they trip over
        raise UserError(f"picture {place} cannot be read: {reason(error, place)}") from error


def reason(error: Exception, place: str | Path) -> str:
    """Return why a picture cannot be read, in a few words and without its place."""
    if isinstance(error, Image.DecompressionBombError):
        return f"it claims more pixels than the {2 * (Image.MAX_IMAGE_PIXELS or 0)} that are read at most"
    if isinstance(error, FileNotFoundError):
        return "it is not there (any more)"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is no picture"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).replace(str(place), os.path.basename(place)).split())
    return text or type(error).__name__


def retried(read: Callable[[], T]) -> T:
    """Return what `read` returns; errors that often pass are waited for a few times before they are raised."""
    for pause in PAUSES:
        try:
            return read()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
            time.sleep(pause)
    return read()


def _read(opened: Opened) -> Tensor:
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning), Image.open(opened) as image:
        return to_rgb(image)


def to_rgb(file: ImageFile.ImageFile) -> Tensor:
    """Return an open picture as RGB `(3, H, W)`: uint8, or float32 in [0, 1] for 16 bits.

    Raises:
        ValueError: its white level is undefined.
        Exception: whatever the decoder of a damaged file trips over.
    """
    if file.mode == "F":
        raise ValueError("floating-point pictures do not say which value is white")
    if file.mode == "I" and file.format not in ("PNG", "PPM"):  # these have 16 bits, which Pillow widens
        raise ValueError("pictures of 32-bit integers do not say which value is white")
    low = _low_bytes(file)
    image = ImageOps.exif_transpose(file)
    if low is not None:
        return _deep_color(image, low)
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.float32) / 65535
        if "transparency" in image.info:
            levels[np.asarray(image) == image.info["transparency"]] = 1
        return torch.from_numpy(levels).clamp_(0, 1).expand(3, -1, -1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _low_bytes(image: ImageFile.ImageFile) -> Image.Image | None:
    """Return the lower halves of 16 bits of each color as a picture; None for a picture that has eight.

    Pillow keeps the upper halves. Told that the bytes come in the other order, it takes the lower ones for these.
    """
    layouts = [tile.args if isinstance(tile.args, str) else (tile.args or ("",))[0] for tile in image.tile]
    if image.fp is None or not layouts or not all(layout in _OTHER_ORDER for layout in layouts):
        return None
    place = image.fp.tell()
    image.fp.seek(0)
    twin: Any = Image.open(BytesIO(image.fp.read()))
    image.fp.seek(place)
    twin.tile = [
        tile._replace(
            args=_OTHER_ORDER[layout] if isinstance(tile.args, str) else (_OTHER_ORDER[layout], *tile.args[1:])
        )
        for tile, layout in zip(twin.tile, layouts, strict=True)
    ]
    return ImageOps.exif_transpose(twin)


def _deep_color(high: Image.Image, low: Image.Image) -> Tensor:
    """Return float32 `(3, H, W)` in [0, 1] of the upper and lower halves of 16 bits of each color, over white."""
    levels = np.asarray(high).astype(np.float32) * 256 + np.asarray(low)
    color, alpha = levels[..., :3] / 65535, levels[..., 3:] / 65535
    if "transparency" in high.info:
        alpha = (levels != high.info["transparency"]).any(axis=-1, keepdims=True).astype(np.float32)
    if alpha.shape[-1]:
        color = color * alpha + (1 - alpha)
    return torch.from_numpy(color).permute(2, 0, 1)
