"""A frozen encoder, a projection and a normalizer: image -> rep -> z."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from rcg.config import EncoderConfig, Experiment, ProjectionConfig, differences, recall
from rcg.core import checkpoint
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import ENCODERS
from rcg.core.rng import fold


class Transform(nn.Module):
    """Maps raw representations `(..., D)` to z `(..., d)`: a linear projection if asked for, then a normalizer.

    A projection, and a normalizer over the data set, have to be fitted first; what they learn is their state.
    """

    center: Tensor  # (D,)
    components: Tensor  # (d, D)
    mean: Tensor  # (d,)
    std: Tensor  # (d,)

    def __init__(self, normalize: str, projection: ProjectionConfig | None = None) -> None:
        super().__init__()
        self.normalizer, self.projection = normalize, projection

    @property
    def needs_fit(self) -> bool:
        """Whether the map depends on data."""
        return self.projection is not None or self.normalizer == "per_dataset"

    @property
    def id(self) -> str:
        """What the map does, and the digest of what it learned."""
        learned = f"-{checkpoint.digest(self.state_dict())[:8]}" if self.needs_fit else ""
        kind = "" if self.projection is None else "whiten" if self.projection.whiten else "pca"
        linear = f"{kind}{self.projection.width}/" if self.projection else ""
        return f"{linear}{self.normalizer}{learned}"

    def width(self, raw: int) -> int:
        """Return d for representations of width D = `raw`."""
        return self.projection.width if self.projection else raw

    def fit(self, rep: Tensor) -> None:
        """Fit to raw representations `(M, D)`.

        Raises:
            UserError: the projection is wider than the representation, or than their number allows.
        """
        if self.projection:
            width, most = self.projection.width, min(rep.shape)
            if width > most:
                raise UserError(
                    f"projection.width is {width}, but {len(rep)} representations of width {rep.shape[1]} have at "
                    f"most {most} principal components"
                )
            pca = PCA(width, whiten=self.projection.whiten, svd_solver="covariance_eigh").fit(rep.double().numpy())
            scale = pca.explained_variance_**-0.5 if self.projection.whiten else np.ones(width)
            self.load({"center": torch.tensor(pca.mean_), "components": torch.tensor(pca.components_ * scale[:, None])})
        if self.normalizer == "per_dataset":
            projected = self._project(rep)
            self.load({"mean": projected.mean(0), "std": projected.std(0).clamp(min=1e-6)})

    def load(self, learned: Mapping[str, Tensor]) -> None:
        """Take over what another map of the same kind learned."""
        for name, value in learned.items():
            self.register_buffer(name, value.float())

    def forward(self, rep: Tensor) -> Tensor:
        """Map `rep` `(..., D)` to z `(..., d)`.

        per_sample standardizes each vector over its own features, as RCG does (unbiased deviation, no epsilon);
        per_dataset each feature over the training set, as Diffusion Autoencoders do.
        """
        rep = self._project(rep)
        if self.normalizer == "per_sample":
            return (rep - rep.mean(-1, keepdim=True)) / rep.std(-1, keepdim=True)
        if self.normalizer == "per_dataset":
            return (rep - self.mean) / self.std
        return rep

    def _project(self, rep: Tensor) -> Tensor:
        return (rep - self.center) @ self.components.T if self.projection else rep


class Representation(nn.Module):
    """Maps images to normalized representations z, without gradients.

    Attributes:
        encoder: the frozen encoder.
        encoder_id: digest of its weights and of everything in its config that changes the output.
        transform: raw representation -> z.
    """

    def __init__(self, encoder: nn.Module, transform: Transform) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.transform = transform
        config: EncoderConfig = encoder.config  # type: ignore[assignment]
        settings = config.model_dump_json(exclude={"weights", "train"})
        tensors = checkpoint.digest(encoder.state_dict())
        self.encoder_id = hashlib.sha256(f"{tensors}{settings}".encode()).hexdigest()[:16]

    @property
    def space(self) -> Space:
        """The space of z, `(d,)`; a transform that has to be fitted must have been."""
        config: EncoderConfig = self.encoder.config  # type: ignore[assignment]
        width = self.transform.width(self.encoder.width)  # type: ignore[arg-type]
        return Space((width,), id=f"{config.name}:{self.encoder_id}/{self.transform.id}")

    def train(self, mode: bool = True) -> Representation:
        """Stay in evaluation mode, whatever the modules around do."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to raw representations `(B, D)`, float32."""
        rep: Tensor = self.encoder(image)
        return rep.float()

    def forward(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to z `(B, d)`."""
        z: Tensor = self.transform(self.encode(image))
        return z


def build_encoder(config: EncoderConfig, image_size: int, load: bool = True) -> Any:
    """Build the encoder that `config` names for a data set of `image_size` pixels."""
    return ENCODERS.get(config.name)(config, image_size=image_size, load=load)


def open_encoder(config: EncoderConfig, image_size: int, seed: int = 0) -> Any:
    """Build an encoder whose section names its weights; `none` means the random ones of a seed."""
    with torch.random.fork_rng(devices=[]):  # all that use the same random weights shall agree on them
        torch.default_generator.manual_seed(fold(seed, "weights", "encoder"))
        return build_encoder(config, image_size)


def encoder_part(encoder: Any, image_size: int, facts: dict[str, Any]) -> checkpoint.Part:
    """Describe an encoder so that `restore_encoder` builds it again from one file."""
    facts = {"image_size": image_size, "width": encoder.width, **facts}
    return checkpoint.Part("encoder", encoder.config.model_dump(mode="json"), facts, encoder.state_dict())


def restore_encoder(path: Path) -> Any:
    """Rebuild the encoder of a checkpoint."""
    part = checkpoint.load(path)
    config = recall(ENCODERS, part.kind, part.config)
    encoder = build_encoder(config, part.facts["image_size"], load=False)
    encoder.load_state_dict(part.tensors)
    return encoder


def open_representation(experiment: Experiment) -> Representation:
    """Load the experiment's encoder: the one trained into its run, or the one whose weights it names.

    A transform that depends on data is not fitted yet.

    Raises:
        UserError: the encoder is not trained yet, or the trained one is not the one described.
    """
    config, transform = experiment.encoder, Transform(experiment.normalize, experiment.projection)
    if config.weights is not None:
        return Representation(open_encoder(config, experiment.data.image_size, experiment.seed), transform)
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
    return Representation(encoder, transform)
