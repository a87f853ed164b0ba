"""data2vec: a BEiT that predicts its own latent targets (Baevski et al., ICML 2022), from its authors' files."""

from __future__ import annotations

from typing import Any, Literal

from timm.models.beit import Beit
from torch import Tensor

from rcg.core.registry import ENCODERS
from rcg.encoders._published import NORM, VITS, PublishedEncoder, ViTConfig, dimensions


class Data2VecConfig(ViTConfig):
    """data2vec's vision models."""

    name: str = "data2vec"
    arch: Literal["vit_base", "vit_large"] = "vit_base"
    """Size of the trunk."""
    feature: Literal["backbone"] = "backbone"


@ENCODERS.register
class Data2Vec(PublishedEncoder):
    """Maps images to the mean of the patch tokens: the class token had no target in training."""

    Config = Data2VecConfig
    license = "mit"
    left_out = ("mask_token", "lm_head.", "rel_pos_bias.relative_position_index")  # only pre-training needs them

    def build_trunk(self) -> Any:
        """Build a BEiT, whose blocks share relative positions."""
        positions = {"use_abs_pos_emb": False, "use_shared_rel_pos_bias": True}
        options = {"num_classes": 0, "init_values": 1e-4, "use_fc_norm": False, "norm_layer": NORM, **positions}
        return Beit(img_size=self.side, patch_size=self.config.patch, **dimensions(self.config, VITS), **options)

    def _pooled(self, image: Tensor) -> Tensor:
        return self.patch_features(image).mean(1)
