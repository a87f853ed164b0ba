"""DiT checkpoints: of RCG (`main_dit.py`), and of the original DiT (Peebles and Xie)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import CONVERTERS, GENERATORS
from rcg.diffusion.model import build
from rcg.encoding.run_folder import RunFolder
from rcg.generators.published import _files
from rcg.generators.published._converter import Converter
from rcg.generators.published._files import Tensors
from rcg.nn import sincos_positions

POSITIONS, PATCHES, NULL = "pos_embed", "x_embedder.proj.weight", "fake_latent"
NAMES = {
    "x_embedder.proj": "network.patches",
    "t_embedder.mlp": "network.time",
    "blocks.*.attn": "network.blocks.*.attn",
    "blocks.*.mlp": "network.blocks.*.mlp",
    "blocks.*.adaLN_modulation": "network.blocks.*.modulation",
    "final_layer.linear": "network.output",
    "final_layer.adaLN_modulation": "network.modulation",
    NULL: "null",
}
"""The original names of layers, and ours."""
COND = {"representation": "rep_embedder", "class": "y_embedder.embedding_table"}
"""The original name of the embedding of each condition."""
UNUSED = {"representation": (COND["class"],), "class": (COND["representation"], NULL)}
"""Prefixes of the original tensors that are not used under each condition."""
HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1152, 28): 16}
"""Attention heads of the published widths and depths; the weights do not tell."""
FOREIGN = {**_files.DIFFUSION, "mlp": "gelu", "norm": "layer", "qk_norm": False, "rotary": False, "context_tokens": 0}
"""Settings that the original code does not have, and the values at which they change nothing."""


@CONVERTERS.register
class DiTConverter(Converter):
    """Reads and writes training checkpoints of RCG and plain state dicts of the original DiT."""

    options = frozenset({"heads"})

    def read(self, path: Path, run: RunFolder) -> list[Path]:
        """Turn an original checkpoint into the run's dit (or dit-class), and return the files that were written.

        A representation is taken to be that of the run's RDM, and latents those of its autoencoder. The last row of a
        table of classes is its null.

        Raises:
            UserError: the file is not a DiT's, or its tensors do not fit the network.
        """
        original = _files.read_original(path)
        tensors = original.average
        if PATCHES not in tensors or POSITIONS not in tensors:
            raise UserError(f"{path} is not a DiT checkpoint: it has no {PATCHES} with {POSITIONS}")
        # The neighbors.
        condition = condition_of(tensors)
        width, channels, patch, _ = tensors[PATCHES].shape
        side = patch * math.isqrt(tensors[POSITIONS].shape[1])
        embedding = tensors.get(f"{COND[condition]}.weight")
        if embedding is None:
            raise UserError(
                f"{path} has no embedding of a condition: neither {COND['class']} nor {COND['representation']}"
            )
        if condition == "representation":
            cond = _files.cond_space(run, embedding.shape[1], path)
        else:
            cond = Space((), vocab=len(embedding) - 1, id="labels")
        autoencoder, data = _files.find_autoencoder(run, "kl", (channels, side, side), path)
        # The network. DiT's own table of classes ends with the null class; RCG has a null representation.
        dropout = 0.1 if condition == "class" else _files.dropout_of(original.args, path) if NULL in tensors else 0.0
        depth = _files.count(tensors, "blocks")
        heads = self.heads or HEADS.get((width, depth))
        if heads is None:
            raise UserError(
                f"{path} has a width of {width} and {depth} blocks, which were not published, and its weights do not "
                f"tell the attention heads: give them as --heads"
            )
        learns_variance = len(tensors["final_layer.linear.weight"]) == 2 * channels * patch**2
        network = GENERATORS.get("dit")
        config = network.Config(
            width=width,
            depth=depth,
            heads=heads,
            patch=patch,
            gelu="exact" if "rep_embedder.weight" in tensors else "tanh",
            condition=condition,
            condition_dropout=dropout,
            process={"name": "gaussian", "variance": "learned_range" if learns_variance else "fixed_large"},
            sampler={"name": "ddpm", "steps": 250, "spacing": "linspace"},
            guidance={"channels": 3},
            autoencoder=autoencoder,
        )
        model = build(config, network, data, cond)
        # The tensors that only the original format needs; the published autoencoders shrink images eightfold.
        extra = {key: value for key, value in tensors.items() if key.startswith(UNUSED[condition])}
        extra |= {_files.LIVE + key: value for key, value in original.live.items()}
        return _files.save_generator(run, model, to_ours(tensors, condition), extra, path, image_size=8 * side)

    def write(self, run: RunFolder, path: Path) -> None:
        """Turn the run's dit (or dit-class) into an original checkpoint: RCG's where a representation is the condition.

        Without the live weights of a converted file the averaged ones replace them.
        """
        part, live, extra = _files.load_generator(run, "dit", FOREIGN)
        config = part.config
        if config["condition"] == "none":
            raise UserError(f"{run.path}/dit-none has no condition, which the original code cannot load")
        assert part.facts.data is not None
        average = to_original(part.tensors, config["condition"], config["patch"], part.facts.data)
        if NULL in average and config["condition_dropout"] == 0 and not average[NULL].any():
            del average[NULL]  # the converter filled in what the file did not have
        average |= extra
        if config["condition"] == "representation":
            average.setdefault(f"{COND['class']}.weight", torch.zeros(1, config["width"]))
            live = live or average
        _files.write_original(path, average, live)


def condition_of(tensors: Tensors) -> str:
    """Return the condition of an original network: RCG's have both embeddings, and a table of one class unused."""
    table = tensors.get(f"{COND['class']}.weight")
    return "class" if table is not None and len(table) > 1 else "representation"


def to_ours(tensors: Tensors, condition: str) -> dict[str, Tensor]:
    """Return original tensors under our names, without fixed positions and unused tensors."""
    names, unused = NAMES | {COND[condition]: "network.cond.embed"}, (POSITIONS, *UNUSED[condition])
    renamed = {_files.swap(key, names): value for key, value in tensors.items() if not key.startswith(unused)}
    renamed["network.patches.weight"] = tensors[PATCHES].flatten(1)
    return renamed


def to_original(tensors: Tensors, condition: str, patch: int, data: Space) -> dict[str, Tensor]:
    """Return our tensors, of a model of `data` `(C, h, w)`, under the original names."""
    channels, side, _ = data.shape
    names = _files.inverse(NAMES | {COND[condition]: "network.cond.embed"})
    renamed = {_files.swap(key, names): value for key, value in tensors.items()}
    renamed[PATCHES] = renamed[PATCHES].unflatten(1, (channels, patch, patch))
    renamed[POSITIONS] = sincos_positions(side // patch, renamed["t_embedder.mlp.2.bias"].shape[0])[None]
    return renamed
