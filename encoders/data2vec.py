"""data2vec: a BEiT that predicts its own latent targets (Baevski et al., ICML 2022), from the files of its authors."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from rcg.encoders._published import VITS, PublishedEncoder, ViTConfig, prefixed
from timm.models.beit import Beit
from torch import Tensor, nn

from rcg.core import pretrained as weights
from rcg.core.registry import ENCODERS


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

    def __init__(self, config: Data2VecConfig, image_size: int | None = None, load: bool = True) -> None:
        width, depth, heads = VITS[config.arch]
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        trunk = Beit(
            img_size=config.input_size,
            patch_size=config.patch,
            embed_dim=config.width or width,
            depth=config.depth or depth,
            num_heads=config.heads or heads,
            num_classes=0,
            init_values=1e-4,
            use_abs_pos_emb=False,
            use_shared_rel_pos_bias=True,
            use_fc_norm=False,
            norm_layer=norm,
        )
        super().__init__(config, trunk, None, 0, config.input_size)
        self.fill(load)

    def rename(self, found: dict[str, Any]) -> dict[str, Tensor]:
        """Read `model` without what only pre-training needs."""
        dropped = ("mask_token", "lm_head.", "rel_pos_bias.relative_position_index")
        tensors = weights.state_dict(found)
        return prefixed({key: value for key, value in tensors.items() if not key.startswith(dropped)})

    def _pooled(self, image: Tensor) -> Tensor:
        return self.tokens(image).mean(1)
