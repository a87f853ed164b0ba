"""MSN: masked siamese networks (Assran et al., ECCV 2022), from the files of their authors."""

from __future__ import annotations

from typing import Any, Literal

from rcg.encoders._published import VITS, PublishedEncoder, ViTConfig, prefixed, vit
from torch import Tensor

from rcg.core import pretrained as weights
from rcg.core.registry import ENCODERS


class MSNConfig(ViTConfig):
    """MSN; `patch` is 16, or 7 and 4 in the files that say so."""

    name: str = "msn"
    arch: Literal["vit_small", "vit_base", "vit_large"] = "vit_base"
    """Size of the trunk."""
    feature: Literal["backbone"] = "backbone"


@ENCODERS.register
class MSN(PublishedEncoder):
    """Maps images to the class token of the target encoder."""

    Config = MSNConfig
    license = "cc-by-nc-4.0"

    def __init__(self, config: MSNConfig, image_size: int | None = None, load: bool = True) -> None:
        trunk = vit(config, VITS, config.input_size, config.patch)
        super().__init__(config, trunk, None, 0, config.input_size)
        self.fill(load)

    def rename(self, found: dict[str, Any]) -> dict[str, Tensor]:
        """Read `target_encoder`; its projection (`fc.`) was trained for prototypes and is left out."""
        tensors = weights.state_dict(found.get("target_encoder", found))
        return prefixed({key: value for key, value in tensors.items() if not key.startswith("fc.")})
