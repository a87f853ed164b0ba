"""LDM checkpoints of RCG (`main_ldm.py`): an averaged U-Net, its live twin, the autoencoder and the frozen encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rcg.core import pretrained
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import CONVERTERS, GENERATORS
from rcg.diffusion.model import build
from rcg.encoding.run_folder import RunFolder
from rcg.generators.published import _autoencoder, _encoder, _files, _rcg, _unet
from rcg.generators.published._converter import Converter
from rcg.generators.published._files import LIVE, Tensors
from rcg.generators.published._rcg import AVERAGE, LABELS, NETWORK, UPDATES

AUTOENCODER = "first_stage_model."
TABLE = "network.cond.embed.embed.weight"
INNER = _unet.RESIDUAL | {
    "op": "stride",
    "conv": "conv",
    "norm": "norm",
    "proj_in": "input",
    "proj_out": "output",
    "transformer_blocks.*.attn1.to_out.0": "blocks.*.attn.proj",
    "transformer_blocks.*.attn2.to_q": "blocks.*.cross.q",
    "transformer_blocks.*.attn2.to_out.0": "blocks.*.cross.proj",
    "transformer_blocks.*.ff.net.0.proj": "blocks.*.mlp.fc1",
    "transformer_blocks.*.ff.net.2": "blocks.*.mlp.fc2",
    "transformer_blocks": "blocks",
}
"""The original names of layers in cells, and ours; the first that fits counts."""
FUSED = {"attn.qkv.": ("attn1.to_q.", "attn1.to_k.", "attn1.to_v."), "cross.kv.": ("attn2.to_k.", "attn2.to_v.")}
"""Our layers, and the original ones whose rows they hold."""
PUBLISHED = (256, (1, 2, 4))
"""Width and multipliers of the published LDM-8, whose heads have 32 channels."""
SIDE = 32
"""Side of the latents of a file without its autoencoder, as published; the weights do not tell."""


@CONVERTERS.register
class LDMConverter(Converter):
    """Reads and writes the training checkpoints of `main_ldm.py`."""

    options = frozenset({"head_width", "encoder_heads"})

    def read(self, path: Path, run: RunFolder) -> list[Path]:
        """Turn an original checkpoint into the run's ldm (or ldm-class), encoder and autoencoder.

        Returns:
            The files that were written.

        Raises:
            UserError: the file is not an LDM's, or its tensors do not fit the network.
        """
        tensors = pretrained.read_weights(path)
        if f"{NETWORK}input_blocks.0.0.weight" not in tensors or UPDATES not in tensors:
            raise UserError(f"{path} is not an LDM checkpoint: it has no {NETWORK}input_blocks with its average")
        live = _files.select(tensors, NETWORK)
        average = {key: tensors[_rcg.average_name(NETWORK + key)] for key in live}
        # The neighbors.
        encoder = _encoder.read(tensors, self.encoder_heads, path)
        tokenizer = _autoencoder.read(tensors, AUTOENCODER, path, "vq")
        if tokenizer is None:
            channels = live["input_blocks.0.0.weight"].shape[1]
            section, data = _files.find_autoencoder(run, "vq", (channels, SIDE, SIDE), path)
        else:
            section, data = tokenizer.config, tokenizer.space
        cond = Space((), vocab=len(tensors[LABELS]), id="labels")
        if encoder:
            cond = _encoder.space(encoder, encoder.width, path)
        # The network.
        shape = _unet.shape_of(live, data.shape[1])
        if (shape["width"], tuple(shape["multipliers"])) != PUBLISHED and self.head_width is None:
            raise UserError(
                f"{path} has a width of {shape['width']} and multipliers {shape['multipliers']}, which were not "
                f"published, and its weights do not tell the attention heads: give their channels as --head-width"
            )
        network = GENERATORS.get("ldm")
        config = network.Config(
            **shape,
            head_width=self.head_width or 32,
            transformer_depth=_files.count(live, "middle_block.1.transformer_blocks"),
            condition="representation" if encoder else "class",
            condition_dropout=0.0,
            sampler={"name": "ddim", "steps": 200, "eta": 1.0, "spacing": "rcg"},
            autoencoder=section,
        )
        model = build(config, network, data, cond)
        # The weights, and tensors that only the original format needs.
        weights = {f"network.{key}": value for key, value in to_ours(average).items()}
        if model.null is None:
            weights[TABLE] = _rcg.with_null_row(tensors[LABELS])
        elsewhere = (NETWORK, AVERAGE, _encoder.PREFIX, *_rcg.schedule(), *([AUTOENCODER] if tokenizer else []))
        extra = {LIVE + key: value for key, value in live.items()}
        extra |= {key: value for key, value in tensors.items() if not key.startswith(elsewhere)}
        written = _files.save_generator(run, model, weights, extra, path, image_size=_autoencoder.SIDE)
        return written + _encoder.save(encoder, run) + _autoencoder.save(tokenizer, run)

    def write(self, run: RunFolder, path: Path) -> None:
        """Turn the run's ldm (or ldm-class), encoder and autoencoder into an original checkpoint.

        Without the live weights of a converted file the averaged ones replace them.
        """
        foreign = {"context_tokens": 1, "groups": _unet.GROUPS, "process.schedule": "sqrt_linear"}
        part, live, extra = _files.load_generator(run, "ldm", _files.DIFFUSION | foreign)
        if part.config["condition"] == "none":
            raise UserError(f"{run.path}/ldm-none has no condition, which the original code cannot load")
        average = {NETWORK + key: value for key, value in to_original(part.tensors).items()}
        live = {NETWORK + key: value for key, value in live.items()} or average
        content = _rcg.schedule() | _encoder.original(run) | _autoencoder.original(run, AUTOENCODER)
        content |= _rcg.with_average(live, average, decay=0.9999, updates=0)
        if part.config["condition"] == "class":
            content[LABELS] = part.tensors[TABLE][:-1]
        _files.write_training(path, content | extra)


def to_ours(tensors: Tensors) -> dict[str, Tensor]:
    """Return original tensors of the U-Net under our names, projections fused, 1 x 1 convolutions as matrices."""
    fused = dict(tensors)
    for layer, parts in FUSED.items():
        for key in tensors:
            if parts[0] in key:
                rows = [fused.pop(key.replace(parts[0], part)) for part in parts]
                fused[key.replace(parts[0], layer)] = torch.cat(rows)
    renamed = {}
    for key, value in fused.items():
        is_matrix = _is_projection(key) and value.ndim == 4
        renamed[_unet.our_name(key, INNER)] = value.flatten(1) if is_matrix else value
    return renamed


def to_original(tensors: Tensors) -> dict[str, Tensor]:
    """Return our tensors of the U-Net, `network. ...`, under the original names."""
    renamed = {}
    for name, value in tensors.items():
        key = name.removeprefix("network.")
        if key == "null" or key.startswith("cond."):
            continue
        key = _unet.original_name(key, INNER)
        is_matrix = _is_projection(key) and value.ndim == 2
        renamed[key] = value[..., None, None] if is_matrix else value
    for layer, parts in FUSED.items():
        for key in [key for key in renamed if layer in key]:
            rows = renamed.pop(key).chunk(len(parts))
            renamed |= {key.replace(layer, part): row for part, row in zip(parts, rows, strict=True)}
    return renamed


def _is_projection(key: str) -> bool:
    """Whether an original tensor belongs to a 1 x 1 convolution around a transformer."""
    return ".proj_in." in key or ".proj_out." in key
