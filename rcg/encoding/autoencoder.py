"""The first stage of a generator: where its weights come from, and the name of the space that they define."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import nn

from rcg.config import AutoencoderConfig, ComponentConfig, differences, recall
from rcg.core import checkpoint
from rcg.core import pretrained as weights
from rcg.core.contracts import Autoencoder, Space
from rcg.core.errors import UserError
from rcg.core.registry import AUTOENCODERS

FOLDER = "autoencoder"
"""Where a run keeps the autoencoder that was trained in it."""
CHOICES = {"weights", "train"}
"""The keys of its section that do not change what it computes."""


def open_autoencoder(config: ComponentConfig, image_size: int, run: Path | None) -> Any:
    """Return the frozen autoencoder of `config`: one without weights, of a file that it names, or trained in `run`.

    Raises:
        UserError: it is not trained yet, or the trained one is not the one described, or its file does not fit.
    """
    autoencoder = build_autoencoder(config, image_size)
    if isinstance(config, AutoencoderConfig):
        fill(autoencoder, _trained(run) if config.weights is None else Path(config.weights))
    return frozen(autoencoder)


def fill(autoencoder: Any, path: Path) -> None:
    """Load the weights of a file of ours, or of a published one.

    Raises:
        UserError: the file is missing, or holds another autoencoder.
    """
    if checkpoint.is_part(path):
        part = checkpoint.load(path)
        mine = autoencoder.config.model_dump(mode="json", exclude=CHOICES)
        theirs = {key: value for key, value in part.config.items() if key not in CHOICES}
        changed = list(differences(theirs, mine, "generator.autoencoder"))
        if changed:
            raise UserError(
                f"{path} holds another autoencoder ({'; '.join(changed[:3])}): train it again or choose another run="
            )
        tensors = part.tensors
    else:
        tensors = autoencoder.rename(weights.state_dict(weights.read(path)))
    weights.fit(autoencoder, tensors, path)


def build_autoencoder(config: ComponentConfig, image_size: int) -> Any:
    """Build the autoencoder that `config` names for square images of `image_size` pixels."""
    return AUTOENCODERS.get(config.name)(config, image_size)


def restore_autoencoder(part: checkpoint.Part, image_size: int) -> Any:
    """Rebuild the frozen autoencoder of a part."""
    config = recall(AUTOENCODERS, part.kind, part.config)
    autoencoder = build_autoencoder(config, image_size)
    autoencoder.load_state_dict(part.tensors)
    return frozen(autoencoder)


def autoencoder_part(autoencoder: Any, facts: dict[str, Any]) -> checkpoint.Part:
    """Describe an autoencoder so that `restore_autoencoder` builds it again from one file."""
    return checkpoint.Part(FOLDER, autoencoder.config.model_dump(mode="json"), facts, autoencoder.state_dict())


def has_weights(autoencoder: Any) -> bool:
    """Whether an autoencoder has weights: without, encoding costs nothing, and there is nothing to keep."""
    return isinstance(autoencoder, nn.Module) and next(autoencoder.parameters(), None) is not None


def check_space(autoencoder: Autoencoder, space: Space, whose: str) -> None:
    """Raise `UserError` if `whose` generator works in another space than that of `autoencoder`."""
    mine = autoencoder.space
    if mine != space:
        raise UserError(
            f"{whose} generates latents of {space.id} {space.shape}, but the autoencoder is {mine.id} {mine.shape}: "
            f"train the generator again (tools/train_pixel.py --overwrite), or give back its autoencoder"
        )


def identity(autoencoder: Any) -> str:
    """Name an autoencoder and the digest of all that decides its latents: its config, and weights but the decoder's."""
    settings = autoencoder.config.model_dump_json(exclude=CHOICES)
    state = autoencoder.state_dict()
    tensors = checkpoint.digest({name: x for name, x in state.items() if not name.startswith(autoencoder.decoding)})
    return f"{autoencoder.config.name}:{hashlib.sha256(f'{tensors}{settings}'.encode()).hexdigest()[:16]}"


def frozen(autoencoder: Any) -> Any:
    """Put an autoencoder into evaluation mode, without gradients of its weights."""
    if isinstance(autoencoder, nn.Module):
        autoencoder.eval().requires_grad_(False)
    return autoencoder


def _trained(run: Path | None) -> Path:
    path = (run or Path()) / FOLDER / checkpoint.FILE
    if run is None or not path.is_file():
        raise UserError(
            f"{path.parent} holds no trained autoencoder and generator.autoencoder.weights names none: "
            f"run tools/train_autoencoder.py with the same configuration first, or set generator.autoencoder.weights"
        )
    return path
