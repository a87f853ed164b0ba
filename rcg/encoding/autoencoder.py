"""The frozen autoencoder of a generator: where its weights come from, and the name of the space that they define."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from rcg.config import AutoencoderConfig, TrainableAutoencoderConfig, differences, identity, parse_saved_config
from rcg.core import checkpoint, pretrained
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Autoencoder, Space, TrainableAutoencoder
from rcg.core.errors import UserError
from rcg.core.registry import AUTOENCODERS


def build_autoencoder(config: AutoencoderConfig, image_size: int) -> Autoencoder:
    """Build the autoencoder that `config` names for square images of `image_size` pixels."""
    autoencoder: Autoencoder = AUTOENCODERS.get(config.name)(config, image_size)
    return autoencoder


def open_autoencoder(config: AutoencoderConfig, image_size: int, trained: Path | None) -> Autoencoder:
    """Return the frozen autoencoder of `config`: without weights, with those of a file, or trained in a run.

    Args:
        config: its section.
        image_size: side of the images in pixels.
        trained: the file of the run's own autoencoder; None: there is no run.

    Raises:
        UserError: it is not trained yet, or the trained one is not the one described, or its file does not fit.
    """
    autoencoder = build_autoencoder(config, image_size)
    if isinstance(config, TrainableAutoencoderConfig):
        path = trained if config.weights is None else Path(config.weights)
        if path is None or (config.weights is None and not path.is_file()):
            raise UserError(
                f"{'the run' if path is None else path.parent} holds no trained autoencoder and "
                f"generator.autoencoder.weights names none: run tools/train_autoencoder.py with the same "
                f"configuration first, or set generator.autoencoder.weights"
            )
        load_weights(autoencoder, path)
    return autoencoder.freeze()


def load_weights(autoencoder: Autoencoder, path: Path) -> None:
    """Load the weights of a file of ours, or of a published one.

    Raises:
        UserError: the file is missing, or holds another autoencoder.
    """
    if not checkpoint.is_part(path):
        assert isinstance(autoencoder, TrainableAutoencoder)
        tensors = autoencoder.rename(pretrained.read_weights(path))
        pretrained.fit(autoencoder, tensors, path)
        return
    part = checkpoint.load(path, "autoencoder")
    saved = parse_saved_config(AUTOENCODERS, part.kind, part.config)
    changed = list(differences(identity(saved), identity(autoencoder.config), "generator.autoencoder"))
    if changed:
        raise UserError(
            f"{path} holds another autoencoder ({'; '.join(changed[:3])}): train it again or choose another run"
        )
    pretrained.fit(autoencoder, part.tensors, path)


def restore_autoencoder(part: Part) -> Autoencoder:
    """Rebuild the frozen autoencoder of a part; raises `UserError` if its config and tensors do not belong together."""

    def build() -> Autoencoder:
        return build_autoencoder(parse_saved_config(AUTOENCODERS, part.kind, part.config), part.facts.image_size)

    return checkpoint.rebuild(part, build).freeze()


def autoencoder_part(autoencoder: Autoencoder, facts: Facts) -> Part:
    """Describe an autoencoder so that `restore_autoencoder` builds it again from one file."""
    return Part("autoencoder", autoencoder.config.model_dump(mode="json"), facts, autoencoder.state_dict())


def check_space(autoencoder: Autoencoder, space: Space, owner: str) -> None:
    """Raise `UserError` if the generator of `owner` works in another space than that of `autoencoder`."""
    if autoencoder.space != space:
        raise UserError(
            f"{owner} generates latents of {space}, but the autoencoder is {autoencoder.space}: train the generator "
            f"again (tools/train_pixel.py --overwrite), or restore its autoencoder"
        )


def space_id(autoencoder: Autoencoder) -> str:
    """Name an autoencoder and the digest of all that decides its latents: its config, and weights but the decoder's."""
    state = autoencoder.state_dict()
    encoding = {name: x for name, x in state.items() if not name.startswith(autoencoder.decoder_keys)}
    settings = json.dumps(identity(autoencoder.config))
    digest = hashlib.sha256(f"{checkpoint.digest(encoding)}{settings}".encode()).hexdigest()
    return f"{autoencoder.config.name}:{digest[:16]}"
