"""DeiT: a supervised ViT, the paper's labeled reference point (Touvron et al., ICML 2021), from its authors' files."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt
from rcg.encoders._published import VITS, PublishedEncoder, ViTConfig, prefixed, vit
from torch import Tensor, nn

from rcg.core import pretrained as weights
from rcg.core.registry import ENCODERS


class DeiTConfig(ViTConfig):
    """DeiT; its head's output is the class logits."""

    name: str = "deit"
    arch: Literal["vit_tiny", "vit_small", "vit_base"] = "vit_base"
    """Size of the trunk."""
    classes: PositiveInt = 1000
    """Classes of the head."""


@ENCODERS.register
class DeiT(PublishedEncoder):
    """Maps images to the class token, or with `feature: projector` to the class logits, as RCG's ablation did."""

    Config = DeiTConfig
    license = "apache-2.0"

    def __init__(self, config: DeiTConfig, image_size: int | None = None, load: bool = True) -> None:
        trunk = vit(config, VITS, config.input_size, config.patch)
        head = nn.Linear(trunk.num_features, config.classes) if config.feature == "projector" else None
        super().__init__(config, trunk, head, config.classes, config.input_size)
        self.fill(load)

    def rename(self, found: dict[str, Any]) -> dict[str, Tensor]:
        """Read `model`, whose names are timm's."""
        return prefixed(weights.state_dict(found))
