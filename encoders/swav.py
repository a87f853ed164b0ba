"""SwAV: ResNet-50 trained by online clustering (Caron et al., NeurIPS 2020), from the files of its authors."""

from __future__ import annotations

from typing import Any

from rcg.encoders._published import PublishedConfig, PublishedEncoder, prefixed, resnet50
from torch import Tensor, nn

from rcg.core import pretrained as weights
from rcg.core.registry import ENCODERS


class SwAVConfig(PublishedConfig):
    """SwAV; DeepCluster-v2 and SeLa-v2 files have the same layout."""

    name: str = "swav"


@ENCODERS.register
class SwAV(PublishedEncoder):
    """Maps images to the mean of the last map (2048), or to the projection that is compared with prototypes (128)."""

    Config = SwAVConfig
    license = "cc-by-nc-4.0"

    def __init__(self, config: SwAVConfig, image_size: int | None = None, load: bool = True) -> None:
        head = None
        if config.feature == "projector":
            head = nn.Sequential(nn.Linear(2048, 2048), nn.BatchNorm1d(2048), nn.ReLU(), nn.Linear(2048, 128))
        super().__init__(config, resnet50(), head, 128, config.input_size)
        self.fill(load)

    def rename(self, found: dict[str, Any]) -> dict[str, Tensor]:
        """Read a flat file; the prototypes are not part of the projection."""
        tensors = weights.state_dict(found)
        kept = {key: value for key, value in tensors.items() if not key.startswith("prototypes.")}
        return prefixed({key.replace("projection_head.", "head."): value for key, value in kept.items()})
