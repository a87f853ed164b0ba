"""SwAV: ResNet-50 trained by online clustering (Caron et al., NeurIPS 2020), from its authors' files."""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn

from rcg.core.registry import ENCODERS
from rcg.encoders._published import PublishedConfig, PublishedEncoder


class SwAVConfig(PublishedConfig):
    """SwAV; DeepCluster-v2 and SeLa-v2 files have the same layout."""

    name: str = "swav"


@ENCODERS.register
class SwAV(PublishedEncoder):
    """Maps images to the mean of the last map (2048), or to the projection that is compared with prototypes (128)."""

    Config = SwAVConfig
    license = "cc-by-nc-4.0"
    left_out = ("prototypes.",)  # not part of the projection

    def build(self) -> tuple[Any, nn.Module | None]:
        """Build a ResNet with torchvision's names, and before it, if it is asked for, the projection."""
        head = None
        if self.config.feature == "projector":
            head = nn.Sequential(nn.Linear(2048, 2048), nn.BatchNorm1d(2048), nn.ReLU(), nn.Linear(2048, 128))
        return timm.create_model("resnet50", num_classes=0), head

    def rename(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a flat file under our names."""
        return super().rename({key.replace("projection_head.", "head."): value for key, value in tensors.items()})
