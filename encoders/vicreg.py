"""VICReg: ResNet-50 trained without negatives (Bardes, Ponce, LeCun, ICLR 2022), from the files of its authors."""

from __future__ import annotations

from typing import Any, Literal

from rcg.encoders._published import PublishedConfig, PublishedEncoder, prefixed, resnet50
from torch import Tensor

from rcg.core import pretrained as weights
from rcg.core.registry import ENCODERS


class VICRegConfig(PublishedConfig):
    """VICReg."""

    name: str = "vicreg"
    feature: Literal["backbone"] = "backbone"


@ENCODERS.register
class VICReg(PublishedEncoder):
    """Maps images to the mean of the last map, 2048 wide."""

    Config = VICRegConfig
    license = "mit"

    def __init__(self, config: VICRegConfig, image_size: int | None = None, load: bool = True) -> None:
        super().__init__(config, resnet50(), None, 0, config.input_size)
        self.fill(load)

    def rename(self, found: dict[str, Any]) -> dict[str, Tensor]:
        """Read the backbone's file, or the backbone out of a full checkpoint."""
        tensors = weights.state_dict(found)
        backbone = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
        bare = {key: value for key, value in (backbone or tensors).items() if not key.startswith("fc.")}
        return prefixed(bare)
