"""MAGE checkpoints of RCG (`main_mage.py`) under every condition, with their encoder and VQGAN."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from rcg.core import pretrained
from rcg.core.contracts import Space, TrainableAutoencoder
from rcg.core.errors import UserError
from rcg.core.registry import CONVERTERS, GENERATORS
from rcg.diffusion.model import GenerativeModel, build
from rcg.encoding.run_folder import RunFolder
from rcg.generators.published import _autoencoder, _encoder, _files
from rcg.generators.published._converter import Converter
from rcg.generators.published._files import Tensors
from rcg.generators.published._rcg import with_null_row

WORDS, BIAS, CLASSES, NULL = "token_emb.word_embeddings.weight", "mlm_layer.bias", "class_emb.weight", "fake_latent"
PROJECTION, POSITIONS = "latent_prior_proj.weight", "token_emb.position_embeddings.weight"
DECODER_POSITIONS, TOKENIZER = "decoder_pos_embed_learned", "vqgan."
NAMES = {
    "token_emb.position_embeddings": "network.positions",
    "token_emb.LayerNorm": "network.norm_in",
    "latent_prior_proj": "network.cond.embed",
    "blocks": "network.encoder",
    "norm": "network.norm",
    "decoder_embed": "network.bridge",
    DECODER_POSITIONS: "network.decoder_positions",
    "decoder_blocks": "network.decoder",
    "decoder_norm": "network.decoder_norm",
    "mlm_layer.fc": "network.head.0",
    "mlm_layer.ln": "network.head.2",
}
"""The original names of layers, and ours; `_to_ours` and `_to_original` convert the tensors of another shape."""
RENAMED = (*(f"{layer}." for layer in NAMES), DECODER_POSITIONS)
"""Prefixes of the original tensors that only change their names; all others but `CLASSES` are stored for the way back.
"""


class Size(NamedTuple):
    """Settings that a checkpoint does not hold."""

    heads: int
    decoder_heads: int
    choice_temperature: float


SIZES = {768: Size(12, 16, 6.0), 1024: Size(16, 16, 11.0), 1280: Size(16, 16, 11.0)}
"""By width: base, large and huge; the temperature of huge was never published and is that of large."""


@CONVERTERS.register
class MAGEConverter(Converter):
    """Reads and writes the training checkpoints of `main_mage.py`."""

    options = frozenset({"encoder_heads"})

    def read(self, path: Path, run: RunFolder) -> list[Path]:
        """Turn an original checkpoint into the run's mage (or mage-class, mage-none), encoder and autoencoder.

        Returns:
            The files that were written.

        Raises:
            UserError: the file is not a MAGE's, its size was never published, or its tensors do not fit.
        """
        content = pretrained.read(path)
        tensors = pretrained.state_dict(content, path)
        if WORDS not in tensors or BIAS not in tensors:
            raise UserError(f"{path} is not a MAGE checkpoint: it has no {WORDS} with {BIAS}")
        encoder = _encoder.read(tensors, self.encoder_heads, path)
        tokenizer = _autoencoder.read(tensors, TOKENIZER, path, "vqgan")
        dropout = _files.dropout_of(_files.arguments_of(content), path)
        model = _build(tensors, encoder, tokenizer, dropout, run, path)
        elsewhere = (*RENAMED, CLASSES, *([_encoder.PREFIX] if encoder else []), *([TOKENIZER] if tokenizer else []))
        extra = {key: value for key, value in tensors.items() if not key.startswith(elsewhere)}
        image_size = 16 * model.data.shape[0]
        written = _files.save_generator(run, model, _to_ours(tensors), extra, path, image_size=image_size)
        return written + _encoder.save(encoder, run) + _autoencoder.save(tokenizer, run)

    def write(self, run: RunFolder, path: Path) -> None:
        """Turn a converted mage (or mage-class, mage-none), trained further or not, into an original checkpoint.

        Raises:
            UserError: there is no MAGE in `run`, or none that came from an original checkpoint.
        """
        part, _, extra = _files.load_generator(run, "mage", {"self_condition": False})
        if WORDS not in extra:
            name = run.stage_folder("mage").original.name
            raise UserError(f"{run.path} holds no {name}: only what was converted from the original format can go back")
        content = extra | _to_original(part.tensors, extra)
        _files.write_training(path, content | _encoder.original(run) | _autoencoder.original(run, TOKENIZER))


def _build(
    tensors: Tensors, encoder: Any, tokenizer: TrainableAutoencoder | None, dropout: float, run: RunFolder, path: Path
) -> GenerativeModel:
    """Build the network that the tensors belong to."""
    words, width = tensors[WORDS].shape
    size = SIZES.get(width)
    if size is None:
        raise UserError(f"{path} has a width of {width}, but published MAGEs have one of {', '.join(map(str, SIZES))}")
    # The neighbors.
    side = math.isqrt(len(tensors[POSITIONS]) - 1)
    condition = "none"
    cond: Space | None = None
    if CLASSES in tensors:
        condition, cond = "class", Space((), vocab=len(tensors[CLASSES]), id="labels")
    elif PROJECTION in tensors:
        condition, dim = "representation", tensors[PROJECTION].shape[1]
        cond = _encoder.space(encoder, dim, path) if encoder else _files.cond_space(run, dim, path)
    # The network.
    config = {
        "width": width,
        "depth": _files.count(tensors, "blocks"),
        "heads": size.heads,
        "decoder_depth": _files.count(tensors, "decoder_blocks"),
        "decoder_heads": size.decoder_heads,
        "tie_embedding_grad": False,
        "min_encoder_tokens": 1.0,
        "condition": condition,
        "condition_dropout": dropout if condition == "representation" else 0.0,  # a null class is made up
        "sampler": {"name": "maskgit", "choice_temperature": size.choice_temperature},
    }
    data = Space((side, side), vocab=_vocab(words), id=f"of {path.name}")
    if tokenizer:
        config["autoencoder"], data = tokenizer.config, tokenizer.space
    network = GENERATORS.get("mage")
    return build(network.Config.model_validate(config), network, data, cond)


def _to_ours(tensors: Tensors) -> dict[str, Tensor]:
    """Return the tensors that our network has, under its names."""
    renamed = {_files.swap(key, NAMES): value for key, value in tensors.items() if key.startswith(RENAMED)}
    table = tensors[WORDS]
    vocab = _vocab(len(table))
    renamed["network.words.weight"] = table[_rows(vocab)]
    renamed["network.bias"] = tensors[BIAS][0, 0, :vocab]
    if CLASSES in tensors:
        renamed["network.cond.embed.weight"] = with_null_row(tensors[CLASSES])
    elif PROJECTION in tensors:
        renamed["null"] = tensors[NULL]
    return renamed


def _to_original(tensors: Tensors, extra: Tensors) -> dict[str, Tensor]:
    """Return our tensors under the original names; `extra` has the rows of tables that our network lacks."""
    names = _files.inverse(NAMES) | {"null": NULL}
    vocab = len(tensors["network.bias"])
    renamed = {WORDS: extra[WORDS].clone(), BIAS: extra[BIAS].clone()}
    for key, value in tensors.items():
        if key == "network.words.weight":
            renamed[WORDS][_rows(vocab)] = value
        elif key == "network.bias":
            renamed[BIAS][0, 0, :vocab] = value
        elif key == "network.cond.embed.weight" and "null" not in tensors:  # a table of classes
            renamed[CLASSES] = value[:-1]
        else:
            renamed[_files.swap(key, names)] = value
    return renamed


def _vocab(words: int) -> int:
    """Return the size K of the codebook: the table holds as many codes, 1000 unused classes, and the mask."""
    return words - 1001


def _rows(vocab: int) -> list[int]:
    """Return the places of our K + 2 rows in the original table: the codes, the mask, the empty slot (1100 of 1024)."""
    return [*range(vocab), vocab + 1000, vocab + 76]
