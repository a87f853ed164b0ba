"""The published MAGE checkpoints (RCG): told a representation, a class, or nothing; with their encoder and VQGAN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rcg.generators.published import _autoencoder, _encoder
from rcg.generators.published._files import KEPT, cond_space, inverse, load_generator, save_generator
from torch import Tensor

from rcg.core import checkpoint
from rcg.core import pretrained as weights
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import CONVERTERS, GENERATORS
from rcg.diffusion.model import GenerativeModel, build
from rcg.encoding.autoencoder import FOLDER

NAMES = {
    "token_emb.position_embeddings": "positions",
    "token_emb.LayerNorm": "norm_in",
    "latent_prior_proj": "cond.embed",
    "blocks": "encoder",
    "norm": "norm",
    "decoder_embed": "bridge",
    "decoder_blocks": "decoder",
    "decoder_norm": "decoder_norm",
    "mlm_layer.fc": "head.0",
    "mlm_layer.ln": "head.2",
}
"""The original names of layers, and ours; what else both have, in another shape, `_ours` and `_theirs` take apart."""
WORDS, BIAS, CLASSES, NULL = "token_emb.word_embeddings.weight", "mlm_layer.bias", "class_emb.weight", "fake_latent"
DECODER_POSITIONS, TOKENIZER = "decoder_pos_embed_learned", "vqgan."
OURS = (*(f"{layer}." for layer in NAMES), DECODER_POSITIONS, CLASSES)
"""The original tensors that are wholly ours; of the others something is kept for the way back."""


class Size(NamedTuple):
    """What a checkpoint does not say of itself."""

    heads: int
    decoder_heads: int
    choice_temperature: float


SIZES = {768: Size(12, 16, 6.0), 1024: Size(16, 16, 11.0), 1280: Size(16, 16, 11.0)}
"""By width: base, large, and huge, whose temperature was never published and is that of large."""


@CONVERTERS.register
class MAGE:
    """Reads and writes the training checkpoints of `main_mage.py`."""

    @staticmethod
    def read(path: Path, run: Path) -> list[Path]:
        """Turn an original checkpoint into `run`/mage (or mage-class, mage-none), `run`/encoder and `run`/autoencoder.

        Returns what was written.

        Raises:
            UserError: the file is not a MAGE's, its size was never published, or its tensors do not fit.
        """
        tensors = weights.state_dict(weights.read(path))
        if WORDS not in tensors or BIAS not in tensors:
            raise UserError(f"{path} is not a MAGE checkpoint: it has no {WORDS} with {BIAS}")
        encoder, tokenizer = _encoder.read(tensors, path), _tokenizer(tensors, path)
        model = _build(tensors, encoder, tokenizer, run, path)
        elsewhere = (*OURS, *([_encoder.PREFIX] if encoder else []), *([TOKENIZER] if tokenizer else []))
        kept = {key: value for key, value in tensors.items() if not key.startswith(elsewhere)}
        written = save_generator(run, model, _ours(tensors), 16 * model.data.shape[0], kept, path)
        written += [_encoder.save(encoder, run)] if encoder else []
        return written + (_autoencoder.save(tokenizer, run) if tokenizer else [])

    @staticmethod
    def write(run: Path, path: Path) -> None:
        """Turn a converted `run`/mage (or mage-class, mage-none), trained further or not, into an original checkpoint.

        Raises:
            UserError: there is no MAGE in `run`, or none that came from an original checkpoint.
        """
        part, kept = load_generator(run, "mage", {"self_condition": False})
        if WORDS not in kept:
            raise UserError(f"{run} holds no {KEPT}: only what was converted from the original format can go back")
        found = {**kept, **_theirs(part.tensors, kept), **_encoder.original(run)}
        if (run / FOLDER / checkpoint.FILE).is_file():
            found |= {TOKENIZER + key: value for key, value in _autoencoder.original(run).items()}
        with checkpoint.atomic(path) as temporary:
            torch.save({"model": found, "model_ema": None, "optimizer": None, "epoch": 0, "scaler": None}, temporary)


def _tokenizer(tensors: Mapping[str, Tensor], path: Path) -> Any:
    """Rebuild the VQGAN that the checkpoint carries; None where it carries none."""
    found = {key.removeprefix(TOKENIZER): value for key, value in tensors.items() if key.startswith(TOKENIZER)}
    return _autoencoder.rebuild("vqgan", found, path) if found else None


def _build(tensors: Mapping[str, Tensor], encoder: Any, tokenizer: Any, run: Path, path: Path) -> GenerativeModel:
    """Build the network that the tensors belong to."""
    words, width = tensors[WORDS].shape
    size = SIZES.get(width)
    if size is None:
        raise UserError(f"{path} has a width of {width}, but published MAGEs have one of {', '.join(map(str, SIZES))}")
    side = math.isqrt(len(tensors["token_emb.position_embeddings.weight"]) - 1)
    cond: Space | None = None
    if CLASSES in tensors:
        cond = Space((), vocab=len(tensors[CLASSES]), id="labels")
    elif "latent_prior_proj.weight" in tensors:
        dim = tensors["latent_prior_proj.weight"].shape[1]
        cond = _encoder.space(encoder, dim, path) if encoder else cond_space(run, dim, path)
    config = {
        "width": width,
        "depth": _count(tensors, "blocks."),
        "heads": size.heads,
        "decoder_depth": _count(tensors, "decoder_blocks."),
        "decoder_heads": size.decoder_heads,
        "tie_embedding_grad": False,
        "min_encoder_tokens": 1.0,
        "condition": "none" if cond is None else "class" if cond.vocab else "representation",
        "sampler": {"name": "maskgit", "choice_temperature": size.choice_temperature},
    }
    data = Space((side, side), vocab=_vocab(words), id=f"of {path.name}")
    if tokenizer:
        config["autoencoder"], data = tokenizer.config, tokenizer.space
    network = GENERATORS.get("mage")
    return build(network.Config.model_validate(config), network, data, cond)


def _ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that our network has, under its names."""
    found = {f"network.{name}": value for key, value in tensors.items() if (name := _our_name(key))}
    table = tensors[WORDS]
    vocab = _vocab(len(table))
    found["network.words.weight"] = table[_rows(vocab)]
    found["network.bias"] = tensors[BIAS][0, 0, :vocab]
    found["network.decoder_positions"] = tensors[DECODER_POSITIONS]
    if CLASSES in tensors:  # ours has one more row, the null label, which these models never saw
        found["network.cond.embed.weight"] = torch.cat([tensors[CLASSES], torch.zeros_like(tensors[CLASSES][:1])])
    elif "latent_prior_proj.weight" in tensors:
        found["null"] = tensors[NULL]
    return found


def _theirs(tensors: Mapping[str, Tensor], rest: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors under the original names; `rest` has the rows of tables that we have not."""
    names, found = inverse(NAMES), {}
    for key, value in tensors.items():
        name = key.removeprefix("network.")
        layer = next((layer for layer in names if name.startswith(f"{layer}.")), None)
        if layer and name != "cond.embed.weight":
            found[names[layer] + name.removeprefix(layer)] = value
    embed = tensors.get("network.cond.embed.weight")
    if embed is not None and "null" in tensors:
        found["latent_prior_proj.weight"], found[NULL] = embed, tensors["null"]
    elif embed is not None:
        found[CLASSES] = embed[:-1]
    vocab = len(tensors["network.bias"])
    found[WORDS], found[BIAS] = rest[WORDS].clone(), rest[BIAS].clone()
    found[WORDS][_rows(vocab)] = tensors["network.words.weight"]
    found[BIAS][0, 0, :vocab] = tensors["network.bias"]
    found[DECODER_POSITIONS] = tensors["network.decoder_positions"]
    return found


def _our_name(key: str) -> str | None:
    """Return our name of an original tensor; None where there is none, or its shape is another."""
    layer = next((layer for layer in NAMES if key.startswith(f"{layer}.")), None)
    return None if layer is None else NAMES[layer] + key.removeprefix(layer)


def _vocab(words: int) -> int:
    """Return the size K of the codebook: the table holds as many codes, 1000 unused classes, and the mask."""
    return words - 1001


def _rows(vocab: int) -> list[int]:
    """Return where the original table has our K + 2 rows: the codes, the mask, and the empty slot (1100 of 1024)."""
    return [*range(vocab), vocab + 1000, vocab + 76]


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.split(".")[1] for key in tensors if key.startswith(prefix)})
