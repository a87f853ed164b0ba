"""Short names of timm's self-supervised networks, with the settings that are easy to get wrong: presets.csv.

The cards of DINOv2 and TIPSv2 ask for 518 and 448 px, five times slower than 224 px, which serve as well;
DINOv3's card pools patches although its class token is the global feature; MAE's class token was never trained, and
I-JEPA has none.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple


class Preset(NamedTuple):
    """A network of timm, a row of presets.csv; None, or an empty cell there: as its card says."""

    model: str
    input_size: int | None
    pooling: str | None
    width: int
    """D of the representation."""
    grid: int
    """Rows, and columns, of its patch features."""
    millions: int
    """Parameters."""


def _preset(row: dict[str, str]) -> Preset:
    width, grid, millions = (int(row[key]) for key in ("width", "grid", "millions"))
    input_size = int(row["input_size"]) if row["input_size"] else None
    return Preset(row["model"], input_size, row["pooling"] or None, width, grid, millions)


with Path(__file__).with_name("presets.csv").open(encoding="utf-8", newline="") as file:
    PRESETS = {row["name"]: _preset(row) for row in csv.DictReader(file)}
