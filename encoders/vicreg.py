"""VICReg: ResNet-50 trained without negatives (Bardes, Ponce, LeCun, ICLR 2022), from its authors' files."""

from __future__ import annotations

from typing import Any, Literal

import timm
from torch import Tensor

from rcg.core.registry import ENCODERS
from rcg.encoders._published import PublishedConfig, PublishedEncoder, only


class VICRegConfig(PublishedConfig):
    """VICReg."""

    name: str = "vicreg"
    feature: Literal["backbone"] = "backbone"


@ENCODERS.register
class VICReg(PublishedEncoder):
    """Maps images to the mean of the last map (2048)."""

    Config = VICRegConfig
    license = "mit"
    left_out = ("fc.",)

    def build_trunk(self) -> Any:
        """Build a ResNet with torchvision's names."""
        return timm.create_model("resnet50", num_classes=0)

    def rename(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the backbone's file, or the backbone of a full checkpoint, under our names."""
        return super().rename(only("backbone.", tensors))
