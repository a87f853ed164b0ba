"""Names of layers in published autoencoders (taming-transformers, MaskGIT, diffusers), and ours.

Ours are taming's, except that attention has one projection for query, key and value, and the codebook is a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PREFIXES = ("first_stage_model.", "vqgan.")
"""Prefixes of an autoencoder's names in the checkpoint of a whole generator."""
GROUPS = 32
"""Groups of channels that published autoencoders normalize, whatever their width."""
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.embedding.")
"""Prefixes of an autoencoder's own tensors; training checkpoints hold discriminators, averages and more as well."""


def from_published(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a published autoencoder, or of a checkpoint that holds one, under our names."""
    tensors = _select(published)
    if any(".down_blocks." in key for key in tensors):
        tensors = _from_diffusers(tensors)
    renamed = {}
    for key, value in tensors.items():
        if key.endswith((".k.weight", ".k.bias", ".v.weight", ".v.bias")):
            continue
        if match := re.fullmatch(r"(.*)\.q\.(weight|bias)", key):
            parts = [tensors[f"{match[1]}.{part}.{match[2]}"] for part in "qkv"]
            renamed[f"{match[1]}.attention.qkv.{match[2]}"] = torch.cat([_to_matrix(part) for part in parts])
        elif match := re.fullmatch(r"(.*)\.proj_out\.(weight|bias)", key):
            renamed[f"{match[1]}.attention.proj.{match[2]}"] = _to_matrix(value)
        else:
            renamed[key.replace("quantize.embedding.weight", "quantize.codebook")] = value
    return renamed


def to_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors under taming's names, without those that the published format does not hold."""
    published = {}
    for key, value in tensors.items():
        if match := re.fullmatch(r"(.*)\.attention\.(qkv|proj)\.(weight|bias)", key):
            shaped = value[..., None, None] if match[3] == "weight" else value
            if match[2] == "proj":
                published[f"{match[1]}.proj_out.{match[3]}"] = shaped
            else:
                for part, name in zip(shaped.chunk(3), "qkv", strict=True):
                    published[f"{match[1]}.{name}.{match[3]}"] = part.contiguous()
        elif key == "quantize.codebook":
            published["quantize.embedding.weight"] = value
        elif not key.startswith(("quantize.", "standardize.")):
            published[key] = value
    return published


def architecture(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the sizes of an autoencoder off its tensors, in our names."""
    width = tensors["encoder.conv_in.weight"].shape[0]
    levels = sorted({int(m[1]) for key in tensors if (m := re.match(r"encoder\.down\.(\d+)\.", key))})
    blocks = {m[1] for key in tensors if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.", key))}
    attention = {int(m[1]) for key in tensors if (m := re.match(r"encoder\.down\.(\d+)\.attn\.", key))}
    return {
        "width": width,
        "multipliers": [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] // width for i in levels],
        "blocks": len(blocks),
        "attention": [2**i for i in sorted(attention)],
        "groups": GROUPS,
        "channels": tensors["decoder.conv_in.weight"].shape[1],
    }


def _to_matrix(tensor: Tensor) -> Tensor:
    """Turn the weight of a 1x1 convolution into that of a linear map."""
    return tensor.reshape(tensor.shape[:2])


def _select(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the autoencoder alone, without the prefix of a generator that holds it."""
    for prefix in PREFIXES:
        if any(key.startswith(f"{prefix}encoder.") for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return {key: value for key, value in tensors.items() if key.startswith(PARTS)}


def _from_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate diffusers' names into taming's; its decoder counts levels from the coarsest."""
    top = max(int(m[1]) for key in tensors if (m := re.search(r"decoder\.up_blocks\.(\d+)\.", key)))
    rules: list[tuple[str, Any]] = [
        (r"down_blocks\.(\d+)\.resnets\.(\d+)\.", r"down.\1.block.\2."),
        (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
        (r"up_blocks\.(\d+)\.resnets\.(\d+)\.", lambda m: f"up.{top - int(m[1])}.block.{m[2]}."),
        (r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{top - int(m[1])}.upsample."),
        (r"mid_block\.resnets\.(\d+)\.", lambda m: f"mid.block_{int(m[1]) + 1}."),
        (r"mid_block\.attentions\.0\.", "mid.attn_1."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.conv_norm_out\.", ".norm_out."),
        (r"\.group_norm\.", ".norm."),
        (r"\.(?:to_)?([qkv])(?:uery|ey|alue)?\.(?=weight|bias)", r".\1."),
        (r"\.(?:to_out\.0|proj_attn)\.", ".proj_out."),
    ]
    renamed = {}
    for key, value in tensors.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed
