"""DeiT: a supervised ViT, the paper's labeled reference (Touvron et al., ICML 2021), from its authors' files."""

from __future__ import annotations

from typing import Literal

from torch import nn

from rcg.config import Width
from rcg.core.registry import ENCODERS
from rcg.encoders._published import PublishedEncoder, ViTConfig


class DeiTConfig(ViTConfig):
    """DeiT; its head's output is the class logits."""

    name: str = "deit"
    arch: Literal["vit_tiny", "vit_small", "vit_base"] = "vit_base"
    """Size of the trunk."""
    classes: Width = 1000
    """Classes of the head."""


@ENCODERS.register
class DeiT(PublishedEncoder):
    """Maps images to the class token, or with `feature: projector` to the class logits, as in RCG's ablation."""

    Config = DeiTConfig
    license = "apache-2.0"

    def build_head(self, width: int) -> nn.Module:
        """Build the classifier."""
        return nn.Linear(width, self.config.classes)
