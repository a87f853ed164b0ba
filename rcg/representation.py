"""A frozen encoder and a normaliser: image -> rep -> z."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcg import checkpoint
from rcg.config import EncoderConfig, Experiment, differences
from rcg.contracts import Space
from rcg.errors import UserError
from rcg.registry import ENCODERS


class Representation(nn.Module):
    """Maps images to normalised representations z, without gradients.

    Attributes:
        encoder: the frozen encoder.
        encoder_id: digest of its weights and of everything in its config that changes the output.
        space: the space of z, `(D,)`.
    """

    def __init__(self, encoder: nn.Module, normalise: str) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.normaliser = normalise
        config: EncoderConfig = encoder.config  # type: ignore[assignment]
        settings = config.model_dump_json(exclude={"weights", "train"})
        tensors = checkpoint.digest(encoder.state_dict())
        self.encoder_id = hashlib.sha256(f"{tensors}{settings}".encode()).hexdigest()[:16]
        width: int = encoder.width  # type: ignore[assignment]
        self.space = Space((width,), id=f"{config.name}:{self.encoder_id}/{normalise}")

    def train(self, mode: bool = True) -> Representation:
        """Stay in evaluation mode, whatever the modules around do."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to raw representations `(B, D)`, float32."""
        rep: Tensor = self.encoder(image)
        return rep.float()

    def normalise(self, rep: Tensor) -> Tensor:
        """Standardise each `rep` `(B, D)` over its own features (RCG: unbiased deviation, no epsilon), or keep it."""
        if self.normaliser == "none":
            return rep
        return (rep - rep.mean(-1, keepdim=True)) / rep.std(-1, keepdim=True)

    def forward(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to z `(B, D)`."""
        return self.normalise(self.encode(image))


def build_encoder(config: EncoderConfig, image_size: int, load: bool = True) -> Any:
    """Build the encoder that `config` names for a data set of `image_size` pixels."""
    return ENCODERS.get(config.name)(config, image_size=image_size, load=load)


def encoder_part(encoder: Any, image_size: int, facts: dict[str, Any]) -> checkpoint.Part:
    """Describe an encoder so that `restore_encoder` builds it again from one file."""
    facts = {"image_size": image_size, "width": encoder.width, **facts}
    return checkpoint.Part("encoder", encoder.config.model_dump(mode="json"), facts, encoder.state_dict())


def restore_encoder(path: Path) -> Any:
    """Rebuild the encoder of a checkpoint."""
    part = checkpoint.load(path)
    config = ENCODERS.get(part.config["name"]).Config.model_validate(part.config)
    encoder = build_encoder(config, part.facts["image_size"], load=False)
    encoder.load_state_dict(part.tensors)
    return encoder


def open_representation(experiment: Experiment) -> Representation:
    """Load the experiment's encoder: the one trained into its run, or the one whose weights it names.

    Raises:
        UserError: the encoder is not trained yet, or the trained one is not the one described.
    """
    config = experiment.encoder
    if config.weights is not None:
        return Representation(build_encoder(config, experiment.data.image_size), experiment.normalise)
    path = experiment.run / "encoder" / checkpoint.FILE
    if not path.is_file():
        raise UserError(
            f"{path.parent} holds no trained encoder and encoder.weights names none: "
            f"run tools/train_encoder.py with the same configuration first, or set encoder.weights"
        )
    encoder = restore_encoder(path)
    ignored = {"train", "weights"}
    old, new = (c.model_dump(mode="json", exclude=ignored) for c in (encoder.config, config))
    changed = list(differences(old, new, "encoder"))
    if changed:
        raise UserError(f"{path} holds another encoder ({'; '.join(changed)}): train it again or choose another run=")
    return Representation(encoder, experiment.normalise)
