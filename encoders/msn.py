"""MSN: masked siamese networks (Assran et al., ECCV 2022), from their authors' files."""

from __future__ import annotations

from typing import Literal

from rcg.core.registry import ENCODERS
from rcg.encoders._published import PublishedEncoder, ViTConfig


class MSNConfig(ViTConfig):
    """MSN; `patch` is 16, or 7 and 4 for the files whose names say so."""

    name: str = "msn"
    arch: Literal["vit_small", "vit_base", "vit_large"] = "vit_base"
    """Size of the trunk."""
    feature: Literal["backbone"] = "backbone"


@ENCODERS.register
class MSN(PublishedEncoder):
    """Maps images to the class token of the target encoder."""

    Config = MSNConfig
    license = "cc-by-nc-4.0"
    left_out = ("fc.",)  # its projection, which was trained for prototypes
