"""A folder of samples, one PNG file for each, and beside them the settings that all of them have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcg.config import differences
from rcg.core.checkpoint import clear_temporaries
from rcg.core.errors import UserError
from rcg.data.pictures import read_picture
from rcg.pipeline import Samples
from rcg.visual.documents import write_json
from rcg.visual.grids import save_image

LISTED = 3
"""Most settings that a message lists."""


class SampleFolder:
    """PNG files of samples, named by their indices, with `settings.json`: an interrupted command goes on among them.

    Attributes:
        path: the folder.
        settings: the file of the settings.
        found: the indices of the samples that were there at first.
    """

    def __init__(self, path: Path) -> None:
        """Look what is in the folder."""
        self.path, self.settings = path, path / "settings.json"
        self.found = {int(file.stem) for file in path.glob("*.png") if file.stem.isdigit()}

    def file(self, index: int) -> Path:
        """Return the file of a sample."""
        return self.path / f"{index:06d}.png"

    def check(self, settings: dict[str, Any], count: int) -> None:
        """Refuse a folder whose samples have other settings, or that holds more than `count` of them.

        Raises:
            UserError: it does.
        """
        instead = "choose another --out, or delete that folder"
        if not self.settings.is_file():
            raise UserError(f"{self.path} holds {len(self.found)} pictures, but no {self.settings.name}: {instead}")
        try:
            recorded = json.loads(self.settings.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{self.settings} is not JSON: {instead}") from None
        changed = list(differences(recorded, json.loads(json.dumps(settings))))
        if changed:
            raise UserError(f"{self.path} holds samples of other settings ({'; '.join(changed[:LISTED])}): {instead}")
        if max(self.found) >= count:
            raise UserError(
                f"{self.path} holds {max(self.found) + 1} samples, more than --num {count}: ask for as many, {instead}"
            )

    def start(self, settings: dict[str, Any]) -> None:
        """Write the settings, and remove what a killed command left half-written."""
        clear_temporaries(self.path)
        write_json(settings, self.settings)

    def missing(self, indices: Sequence[int], batch_size: int) -> Sequence[int]:
        """Return those of `indices` whose files are missing, with the rest of their batches: these do not change."""
        if not self.found:
            return indices
        batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        return [index for batch in batches if not self.found.issuperset(batch) for index in batch]

    def write(self, samples: Samples) -> None:
        """Write samples that are not there yet."""
        for index, image in zip(samples.indices, samples.images, strict=True):
            if index not in self.found:
                save_image(image, self.file(index))

    def read(self, count: int) -> Tensor:
        """Return the first `count` samples `(count, 3, H, W)` in [0, 1]."""
        return torch.stack([read_picture(self.file(index)) for index in range(count)]) / 255
