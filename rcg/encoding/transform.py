"""Raw representation -> z: an optional projection, then a normalizer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rcg.config import Config, ProjectionConfig
from rcg.config.experiment import Normalize
from rcg.core import checkpoint
from rcg.core.checkpoint import Facts, Part
from rcg.core.errors import UserError
from rcg.core.pretrained import misfits


class TransformConfig(Config):
    """What a person chose of a transform, as its part says it."""

    normalize: Normalize = "per_sample"
    projection: ProjectionConfig | None = None


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
        """The name of the map, and the digest of what it learned."""
        learned = f"-{checkpoint.digest(self.state_dict())[:8]}" if self.needs_fit else ""
        return f"{self.kind}{learned}"

    @property
    def kind(self) -> str:
        """The name of the map without what it learned."""
        kind = "" if self.projection is None else "whiten" if self.projection.whiten else "pca"
        linear = f"{kind}{self.projection.width}/" if self.projection else ""
        return f"{linear}{self.normalizer}"

    def width(self, raw: int) -> int:
        """Return d for representations of width D = `raw`."""
        return self.projection.width if self.projection else raw

    def check(self, count: int, raw: int) -> None:
        """Raise `UserError` if so many representations of width D = `raw` have fewer components than asked for."""
        if self.projection and self.projection.width > min(count, raw):
            raise UserError(
                f"projection.width is {self.projection.width}, but {count} representations of width {raw} have at "
                f"most {min(count, raw)} principal components"
            )

    def fit(self, rep: Tensor) -> None:
        """Fit to raw representations `(M, D)`.

        Raises:
            UserError: the projection is wider than the representation, or than their number allows.
        """
        self.check(*rep.shape)
        if self.projection:
            width = self.projection.width
            from sklearn.decomposition import PCA  # slow to import, and rarely needed

            pca = PCA(width, whiten=self.projection.whiten, svd_solver="covariance_eigh").fit(rep.double().numpy())
            scale = pca.explained_variance_**-0.5 if self.projection.whiten else np.ones(width)
            components = torch.tensor(pca.components_ * scale[:, None])
            self._keep({"center": torch.tensor(pca.mean_), "components": components})
        if self.normalizer == "per_dataset":
            projected = self._project(rep)
            self._keep({"mean": projected.mean(0), "std": projected.std(0).clamp(min=1e-6)})

    def load(self, learned: Mapping[str, Tensor], raw: int, source: str) -> None:
        """Take over what a map of the same kind learned of representations of width D = `raw`.

        Raises:
            UserError: `source`, the file that holds it, holds something else.
        """
        width = self.width(raw)
        shapes: dict[str, tuple[int, ...]] = {}
        if self.projection:
            shapes |= {"center": (raw,), "components": (width, raw)}
        if self.normalizer == "per_dataset":
            shapes |= {"mean": (width,), "std": (width,)}
        expected = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        complaints = misfits(expected, learned, exact=True)
        if complaints:
            raise UserError(f"{source} holds another transform than {self.kind} of {raw} features: {complaints}")
        self._keep(learned)

    def _keep(self, learned: Mapping[str, Tensor]) -> None:
        for name, value in learned.items():
            self.register_buffer(name, value.float())

    def forward(self, rep: Tensor) -> Tensor:
        """Map `rep` `(..., D)` to z `(..., d)`.

        per_sample standardizes each vector over its own features, as RCG does (unbiased std, no epsilon);
        per_dataset each feature over the training set, as Diffusion Autoencoders do.
        """
        rep = self._project(rep)
        if self.normalizer == "per_dataset":
            return (rep - self.mean) / self.std
        return self.renormalize(rep)

    def renormalize(self, z: Tensor) -> Tensor:
        """Return z `(..., d)` that was changed with what holds for each z restored: per_sample, its mean and std."""
        if self.normalizer == "per_sample":
            return (z - z.mean(-1, keepdim=True)) / z.std(-1, keepdim=True)
        return z

    def _project(self, rep: Tensor) -> Tensor:
        return (rep - self.center) @ self.components.T if self.projection else rep


def transform_part(transform: Transform) -> Part:
    """Describe a transform so that `restore_transform` builds it again from one file."""
    config = TransformConfig.model_validate({"normalize": transform.normalizer, "projection": transform.projection})
    return Part("transform", config.model_dump(mode="json"), Facts(), transform.state_dict())


def restore_transform(part: Part, raw: int) -> Transform:
    """Rebuild the transform of a part, for representations of width D = `raw`.

    Raises:
        UserError: its config and tensors do not belong together, or not to that width.
    """
    try:
        config = TransformConfig.model_validate(part.config)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("config", *first["loc"])))
        raise UserError(f"{part.source or 'the transform'}: {key} is wrong: {first['msg']}") from None
    transform = Transform(config.normalize, config.projection)
    transform.load(part.tensors, raw, part.source or "the part")
    return transform
