"""What a folder of pictures holds, as far as a plan depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from PIL import Image

from rcg.data.datasets.image_folder import ImageFolderConfig
from rcg.data.images import load_images
from rcg.data.picture_source import PictureFiles

LOOKED_AT = 100
"""About how many pictures are looked at for sizes and colors, spread over the folder."""


@dataclass(frozen=True)
class FolderFacts:
    """What a folder of pictures holds.

    Attributes:
        root: the folder.
        images: number of readable pictures, without those of an official validation split.
        validation: pictures of the official validation split, 0 without one.
        classes: number of class folders, 0 without.
        side: median of the short sides, in pixels.
        elongated: share of pictures more than 1.5 times as long as wide, of which a square keeps the middle.
        gray: whether no picture has colors.
        transparent: share of pictures with an alpha channel, which are laid on white.
    """

    root: Path
    images: int
    validation: int = 0
    classes: int = 0
    side: int = 64
    elongated: float = 0.0
    gray: bool = False
    transparent: float = 0.0

    def lines(self) -> Iterator[str]:
        """Describe it, a few words a line."""
        kind = "gray" if self.gray else "color"
        classes = f" in {self.classes} class folders" if self.classes else ", no class folders"
        yield f"{self.images} {kind} pictures{classes}, short side {self.side} px in the median"
        if self.validation:
            yield f"{self.validation} more in the official validation split"
        if self.transparent:
            yield f"{self.transparent:.0%} of them have an alpha channel and are laid on white"
        if self.elongated:
            yield f"{self.elongated:.0%} are more than 1.5 times as long as wide: a square from their middle is kept"


def look_at(root: Path) -> FolderFacts:
    """Look at a folder; unreadable files are warned of and left out.

    Raises:
        UserError: it is missing, or holds no readable picture, or a single one.
    """
    train, validation = load_images(ImageFolderConfig(root=root))
    source = train.source
    assert isinstance(source, PictureFiles)
    looked_at = range(0, len(source), max(1, len(source) // LOOKED_AT))
    sizes, grays, alphas = [], [], []
    for index in looked_at:
        with Image.open(source.open(index)) as image:
            sizes.append(image.size)
            alphas.append(image.has_transparency_data)
        pixels = source.load(index)
        grays.append(bool((pixels == pixels[:1]).all()))
    return FolderFacts(
        root=root,
        images=len(source),
        validation=len(validation) if validation.source is not source else 0,
        classes=len(source.classes),
        side=int(median(map(min, sizes))),
        elongated=sum(max(size) > 1.5 * min(size) for size in sizes) / len(sizes),
        gray=all(grays),
        transparent=sum(alphas) / len(alphas),
    )
