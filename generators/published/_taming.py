"""The names of layers in published autoencoders (taming-transformers, MaskGIT, diffusers), and ours.

Ours are taming's, but that attention has one projection for query, key and value, and the codebook is a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PREFIXES = ("first_stage_model.", "vqgan.")
"""What whole generators put before the names of their autoencoder."""
GROUPS = 32
"""Groups of channels that published autoencoders normalize, whatever their width."""
KNOWN = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.embedding.")
"""Discriminators, perceptual networks and averages lie beside these in training checkpoints."""


def ours(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a published autoencoder, or of a checkpoint that holds one, under our names."""
    tensors = _select(found)
    if any(".down_blocks." in key for key in tensors):
        tensors = _from_diffusers(tensors)
    renamed = {}
    for key, value in tensors.items():
        if key.endswith((".k.weight", ".k.bias", ".v.weight", ".v.bias")):
            continue
        if match := re.fullmatch(r"(.*)\.q\.(weight|bias)", key):
            parts = [tensors[f"{match[1]}.{part}.{match[2]}"] for part in "qkv"]
            renamed[f"{match[1]}.attention.qkv.{match[2]}"] = torch.cat([_flat(part) for part in parts])
        elif match := re.fullmatch(r"(.*)\.proj_out\.(weight|bias)", key):
            renamed[f"{match[1]}.attention.proj.{match[2]}"] = _flat(value)
        else:
            renamed[key.replace("quantize.embedding.weight", "quantize.codebook")] = value
    return renamed


def theirs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors under taming's names; what the published format does not hold is left out."""
    found = {}
    for key, value in tensors.items():
        if match := re.fullmatch(r"(.*)\.attention\.(qkv|proj)\.(weight|bias)", key):
            shaped = value[..., None, None] if match[3] == "weight" else value
            if match[2] == "proj":
                found[f"{match[1]}.proj_out.{match[3]}"] = shaped
            else:
                for part, name in zip(shaped.chunk(3), "qkv", strict=True):
                    found[f"{match[1]}.{name}.{match[3]}"] = part.contiguous()
        elif key == "quantize.codebook":
            found["quantize.embedding.weight"] = value
        elif not key.startswith(("quantize.", "standardize.")):
            found[key] = value
    return found


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


def _flat(tensor: Tensor) -> Tensor:
    """Take a 1x1 convolution for the linear map that it is."""
    return tensor.reshape(tensor.shape[:2])


def _select(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what does not belong to the autoencoder, and the prefix of a generator that holds it."""
    for prefix in PREFIXES:
        if any(key.startswith(f"{prefix}encoder.") for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    return {key: value for key, value in found.items() if key.startswith(KNOWN)}


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
        (r"\.(?:to_)?(q)(?:uery)?\.(?=weight|bias)", r".\1."),
        (r"\.(?:to_)?(k)(?:ey)?\.(?=weight|bias)", r".\1."),
        (r"\.(?:to_)?(v)(?:alue)?\.(?=weight|bias)", r".\1."),
        (r"\.(?:to_out\.0|proj_attn)\.", ".proj_out."),
    ]
    renamed = {}
    for key, value in tensors.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed
