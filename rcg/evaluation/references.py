"""What samples are compared with: the images of a data set, of a folder or of a file, and published statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from rcg.core.errors import UserError
from rcg.data.images import Split
from rcg.evaluation.extractors import FeatureExtractor
from rcg.evaluation.features import extract
from rcg.evaluation.npz import array_names, read_moments
from rcg.evaluation.samples import ImageSource, StoredImages, dataset_images, folder_images, npz_images
from rcg.evaluation.scores import ReferenceFeatures
from rcg.metrics.frechet import FittedGaussian
from rcg.metrics.inception import SPATIAL

SPLITS = ("train", "validation")
"""The references that a data set provides."""
PUBLISHED = {"2048": ("mu", "sigma"), SPATIAL: ("mu_s", "sigma_s")}
"""Arrays of published statistics, by the tap of the Inception network: those of the FID, and of the sFID."""


class SplitImages(NamedTuple):
    """The training and the validation images of a data set."""

    train: StoredImages
    validation: StoredImages

    @classmethod
    def of(cls, split: Split) -> SplitImages:
        """Serve both splits of a data set."""
        return cls(dataset_images(split.train, "training"), dataset_images(split.validation, "validation"))


@dataclass(frozen=True)
class Reference:
    """Images, published statistics, or both.

    Attributes:
        name: as a person typed it.
        images: the images; None: there are only statistics.
        statistics: published Gaussians by tap of the Inception network.
    """

    name: str
    images: ImageSource | None
    statistics: Mapping[str, FittedGaussian] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any] | None:
        """Everything that decides the images, None without any."""
        return None if self.images is None else self.images.facts

    @property
    def doubts(self) -> Sequence[str]:
        """Sentences about what is doubtful in the images."""
        return self.images.doubts if isinstance(self.images, StoredImages) else ()

    def extract(
        self, extractors: Sequence[FeatureExtractor], folder: Path, accelerator: Accelerator
    ) -> ReferenceFeatures:
        """Compute the features of the images; they are stored in `folder`."""
        features = {}
        if self.images is not None:
            features = extract(self.images, extractors, folder, accelerator, "reference")
        return ReferenceFeatures(features, self.statistics)


def choose_reference(text: str, splits: SplitImages | None, size: int) -> Reference:
    """Return the reference that `text` names.

    Args:
        text: `train` or `validation`, of the data set; a folder of images; an .npz file.
        splits: the images of the experiment, if it is known.
        size: side of the images in pixels.

    Raises:
        UserError: it is none of these.
    """
    if text not in SPLITS:
        return read_reference(Path(text), size)
    if splits is None:
        raise UserError(
            f"--reference {text} needs the experiment: give --config FILE, or --reference with a folder of images or "
            f"an .npz file"
        )
    return Reference(text, splits.train if text == "train" else splits.validation)


def read_reference(path: Path, size: int) -> Reference:
    """Read the images of a folder, or images, statistics or both of an .npz file.

    Raises:
        UserError: it is neither, or holds neither.
    """
    if path.is_dir():
        return Reference(str(path), folder_images(path, size))
    statistics = published_statistics(path)
    if statistics and "arr_0" not in array_names(path):
        return Reference(str(path), None, statistics)
    images = npz_images(path)
    if images.size != size:
        doubt = (
            f"the images of {path} are of {images.size} px, those compared with them of {size} px, and none is resized"
        )
        images = replace(images, doubts=(doubt,))
    return Reference(str(path), images, statistics)


def published_statistics(path: Path) -> dict[str, FittedGaussian]:
    """Read the statistics of an .npz file: `mu` and `sigma` of 2048 features, and `mu_s`, `sigma_s` of the sFID's.

    Raises:
        UserError: it is not an .npz file, or holds a mean without a covariance, or these do not belong together.
    """
    names = array_names(path)
    statistics = {}
    for tap, (mean, covariance) in PUBLISHED.items():
        if (mean in names) != (covariance in names):
            present, missing = (mean, covariance) if mean in names else (covariance, mean)
            raise UserError(f"{path} holds {present} but no {missing}: statistics are a mean and a covariance")
        if mean in names:
            statistics[tap] = FittedGaussian.of_moments(*read_moments(path, mean, covariance))
    return statistics
