"""Names for timm's self-supervised networks, with the settings that are easily got wrong.

The cards of DINOv2 and TIPSv2 ask for 518 and 448 px, which is five times slower than the 224 that they serve too;
DINOv3's card pools patches although its class token is the global feature; MAE's class token was never trained, and
I-JEPA has none.
"""

from __future__ import annotations

from typing import NamedTuple


class Preset(NamedTuple):
    """A network of timm; what is None is as its card says."""

    model: str
    input_size: int | None
    pooling: str | None
    width: int
    """D of the representation."""
    grid: int
    """Rows, and columns, of its patch features."""
    millions: int
    """Parameters."""


# fmt: off
PRESETS: dict[str, Preset] = {
    "dino_vits16": Preset("vit_small_patch16_224.dino", None, None, 384, 14, 22),
    "dino_vits8": Preset("vit_small_patch8_224.dino", None, None, 384, 28, 22),
    "dino_vitb16": Preset("vit_base_patch16_224.dino", None, None, 768, 14, 86),
    "dino_vitb8": Preset("vit_base_patch8_224.dino", None, None, 768, 28, 86),
    "dinov2_vits14": Preset("vit_small_patch14_dinov2.lvd142m", 224, None, 384, 16, 22),
    "dinov2_vits14_reg": Preset("vit_small_patch14_reg4_dinov2.lvd142m", 224, None, 384, 16, 22),
    "dinov2_vitb14": Preset("vit_base_patch14_dinov2.lvd142m", 224, None, 768, 16, 86),
    "dinov2_vitb14_reg": Preset("vit_base_patch14_reg4_dinov2.lvd142m", 224, None, 768, 16, 86),
    "dinov2_vitl14": Preset("vit_large_patch14_dinov2.lvd142m", 224, None, 1024, 16, 303),
    "dinov2_vitl14_reg": Preset("vit_large_patch14_reg4_dinov2.lvd142m", 224, None, 1024, 16, 303),
    "dinov2_vitg14": Preset("vit_giant_patch14_dinov2.lvd142m", 224, None, 1536, 16, 1135),
    "dinov2_vitg14_reg": Preset("vit_giant_patch14_reg4_dinov2.lvd142m", 224, None, 1536, 16, 1135),
    "dinov3_vits16": Preset("vit_small_patch16_dinov3.lvd1689m", None, "token", 384, 16, 22),
    "dinov3_vits16plus": Preset("vit_small_plus_patch16_dinov3.lvd1689m", None, "token", 384, 16, 29),
    "dinov3_vitb16": Preset("vit_base_patch16_dinov3.lvd1689m", None, "token", 768, 16, 86),
    "dinov3_vitl16": Preset("vit_large_patch16_dinov3.lvd1689m", None, "token", 1024, 16, 303),
    "dinov3_vith16plus": Preset("vit_huge_plus_patch16_dinov3.lvd1689m", None, "token", 1280, 16, 841),
    "dinov3_vit7b16": Preset("vit_7b_patch16_dinov3.lvd1689m", None, "token", 4096, 16, 6716),
    "dinov3_convnext_tiny": Preset("convnext_tiny.dinov3_lvd1689m", None, None, 768, 7, 28),
    "dinov3_convnext_small": Preset("convnext_small.dinov3_lvd1689m", None, None, 768, 7, 49),
    "dinov3_convnext_base": Preset("convnext_base.dinov3_lvd1689m", None, None, 1024, 7, 88),
    "dinov3_convnext_large": Preset("convnext_large.dinov3_lvd1689m", None, None, 1536, 7, 196),
    "mae_vitb16": Preset("vit_base_patch16_224.mae", None, "avg", 768, 14, 86),
    "mae_vitl16": Preset("vit_large_patch16_224.mae", None, "avg", 1024, 14, 303),
    "mae_vith14": Preset("vit_huge_patch14_224.mae", None, "avg", 1280, 16, 631),
    "hiera_tiny": Preset("hiera_tiny_224.mae", None, None, 768, 7, 27),
    "hiera_small": Preset("hiera_small_224.mae", None, None, 768, 7, 34),
    "hiera_base": Preset("hiera_base_224.mae", None, None, 768, 7, 51),
    "hiera_base_plus": Preset("hiera_base_plus_224.mae", None, None, 896, 7, 69),
    "hiera_large": Preset("hiera_large_224.mae", None, None, 1152, 7, 213),
    "hiera_huge": Preset("hiera_huge_224.mae", None, None, 2048, 7, 671),
    "fcmae_convnextv2_atto": Preset("convnextv2_atto.fcmae", None, None, 320, 7, 3),
    "fcmae_convnextv2_nano": Preset("convnextv2_nano.fcmae", None, None, 640, 7, 15),
    "fcmae_convnextv2_tiny": Preset("convnextv2_tiny.fcmae", None, None, 768, 7, 28),
    "fcmae_convnextv2_base": Preset("convnextv2_base.fcmae", None, None, 1024, 7, 88),
    "fcmae_convnextv2_large": Preset("convnextv2_large.fcmae", None, None, 1536, 7, 196),
    "ijepa_vith14": Preset("vit_huge_patch14_gap_224.in1k_ijepa", None, "avg", 1280, 16, 631),
    "ijepa_vitg16": Preset("vit_giant_patch16_gap_224.in22k_ijepa", None, "avg", 1408, 14, 1011),
    "eva02_tiny": Preset("eva02_tiny_patch14_224.mim_in22k", None, "avg", 192, 16, 6),
    "eva02_small": Preset("eva02_small_patch14_224.mim_in22k", None, "avg", 384, 16, 22),
    "eva02_base": Preset("eva02_base_patch14_224.mim_in22k", None, "avg", 768, 16, 86),
    "eva02_large": Preset("eva02_large_patch14_224.mim_in22k", None, "avg", 1024, 16, 303),
    "beit3_vitb16": Preset("beit3_base_patch16_224.pt", None, None, 768, 14, 86),
    "beit3_vitl16": Preset("beit3_large_patch16_224.pt", None, None, 1024, 14, 304),
    "aimv2_large": Preset("aimv2_large_patch14_224.apple_pt", None, "avg", 1024, 16, 309),
    "aimv2_huge": Preset("aimv2_huge_patch14_224.apple_pt", None, "avg", 1536, 16, 681),
    "aimv2_1b": Preset("aimv2_1b_patch14_224.apple_pt", None, "avg", 2048, 16, 1235),
    "aimv2_3b": Preset("aimv2_3b_patch14_224.apple_pt", None, "avg", 3072, 16, 2721),
    "pe_core_tiny": Preset("vit_pe_core_tiny_patch16_384.fb", None, "map", 192, 24, 6),
    "pe_core_small": Preset("vit_pe_core_small_patch16_384.fb", None, "map", 384, 24, 24),
    "pe_core_base": Preset("vit_pe_core_base_patch16_224.fb", None, "map", 768, 14, 93),
    "pe_core_large": Preset("vit_pe_core_large_patch14_336.fb", None, "map", 1024, 24, 316),
    "pe_spatial_tiny": Preset("vit_pe_spatial_tiny_patch16_512.fb", None, "avg", 192, 32, 6),
    "pe_spatial_small": Preset("vit_pe_spatial_small_patch16_512.fb", None, "avg", 384, 32, 22),
    "pe_spatial_base": Preset("vit_pe_spatial_base_patch16_512.fb", None, "avg", 768, 32, 86),
    "pe_spatial_large": Preset("vit_pe_spatial_large_patch14_448.fb", None, "avg", 1024, 32, 304),
    "siglip2_vitb16_224": Preset("vit_base_patch16_siglip_224.v2_webli", None, "map", 768, 14, 93),
    "siglip2_vitb16_256": Preset("vit_base_patch16_siglip_256.v2_webli", None, "map", 768, 16, 93),
    "siglip2_vitl16_256": Preset("vit_large_patch16_siglip_256.v2_webli", None, "map", 1024, 16, 316),
    "siglip2_vitso400m14_224": Preset("vit_so400m_patch14_siglip_224.v2_webli", None, "map", 1152, 16, 428),
    "siglip2_vitso400m16_256": Preset("vit_so400m_patch16_siglip_256.v2_webli", None, "map", 1152, 16, 428),
    "clip_vitb32": Preset("vit_base_patch32_clip_224.openai", None, "token", 768, 7, 87),
    "clip_vitb16": Preset("vit_base_patch16_clip_224.openai", None, "token", 768, 14, 86),
    "clip_vitl14": Preset("vit_large_patch14_clip_224.openai", None, "token", 1024, 16, 303),
    "evaclip_vitb16": Preset("eva02_base_patch16_clip_224.merged2b", None, "token", 768, 14, 86),
    "evaclip_vitl14": Preset("eva02_large_patch14_clip_224.merged2b", None, "token", 1024, 16, 303),
    "tipsv2_vitb14": Preset("vit_base_patch14_reg1_tipsv2.webli", 224, "token", 768, 16, 86),
    "tipsv2_vitl14": Preset("vit_large_patch14_reg1_tipsv2.webli", 224, "token", 1024, 16, 303),
    "tipsv2_vitso400m14": Preset("vit_so400m_patch14_reg1_tipsv2.webli", 224, "token", 1152, 16, 413),
    "tipsv2_vitg14": Preset("vit_giant_patch14_reg1_tipsv2.webli", 224, "token", 1536, 16, 1135),
    "radio_vitb16": Preset("vit_base_patch16_radio_v3.c_radio", 256, "token", 768, 16, 86),
    "radio_vitl16": Preset("vit_large_patch16_radio_v3.c_radio", 256, "token", 1024, 16, 303),
    "radio_vith16": Preset("vit_huge_patch16_radio_v3.c_radio", 256, "token", 1280, 16, 631),
    "seer_regnety320": Preset("regnety_320.seer", None, None, 3712, 7, 141),
    "seer_regnety640": Preset("regnety_640.seer", None, None, 4920, 7, 276),
    "seer_regnety1280": Preset("regnety_1280.seer", None, None, 7392, 7, 637),}
# fmt: on
