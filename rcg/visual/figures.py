"""Drawings by matplotlib: the one place where a figure is made and written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcg.core.checkpoint import atomic
from rcg.visual.grids import MARK
from rcg.visual.text import drawable, fonts

if TYPE_CHECKING:  # slow to import
    from matplotlib.figure import Figure


@contextmanager
def drawn(path: Path, width: float, height: float, dpi: int = 90) -> Iterator[Figure]:
    """Yield a figure of `width` x `height` inches, and write it as a PNG, atomically, when the block ends well.

    Names of classes and files appear in it as they are: a `$` starts no formula, and characters that no font here has
    are written as their codes.
    """
    import matplotlib.figure
    from matplotlib.text import Text

    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    yield figure
    families = [font.family for font in fonts()]
    # Before the first drawing the labels of ticks, which are matplotlib's own formulas, are still empty.
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_text():
            lines = text.get_text().split("\n")
            text.set(text="\n".join(map(drawable, lines)), parse_math=False, fontfamily=families)
    metadata: dict[str, Any] = dict(MARK)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, metadata=metadata)
