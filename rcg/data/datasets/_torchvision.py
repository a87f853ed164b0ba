"""Base class of data sets in memory, and the files of those that torchvision knows where to download."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

from torch import Tensor
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import download_and_extract_archive

from rcg.config import RUNTIME, DataConfig
from rcg.core.errors import UserError
from rcg.data.images import DataSource


class ArraySource(DataSource):
    """Base class of data sets in memory; subclasses load the arrays."""

    def __init__(self, pixels: Tensor, labels: Tensor | None, classes: Sequence[str]) -> None:
        """Hold `pixels` `(N, 1 or 3, H, W)`, uint8 or float32 in [0, 1], and `labels` `(N,)` of `classes`, if any."""
        self.pixels = pixels
        self.labels = None if labels is None else labels.long()
        self.classes = () if labels is None else tuple(classes)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def load(self, index: int) -> Tensor:
        """Return one image `(3, H, W)`; gray images get three equal channels."""
        return self.pixels[index].expand(3, -1, -1)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the pixels, labels and class names."""
        digest = hashlib.blake2b(repr((self.pixels.shape, self.classes)).encode(), digest_size=8)
        for chunk in self.pixels.split(1024):  # a layout other than NCHW is copied piece by piece
            digest.update(chunk.contiguous().numpy().data)
        if self.labels is not None:
            digest.update(self.labels.numpy().data)
        return digest.hexdigest()


class TorchvisionConfig(DataConfig):
    """Settings of a data set that torchvision can download."""

    root: Annotated[Path, RUNTIME] = Path("data")
    """Folder that holds the data set's own folder."""
    download: Annotated[bool, RUNTIME] = False
    """Download the data set into `root` if it is not there."""


class Arrays(NamedTuple):
    """Images `(N, 1 or 3, H, W)` uint8, their labels `(N,)`, if any, and the classes' names."""

    pixels: Tensor
    labels: Tensor | None
    classes: Sequence[str]


class Archive(NamedTuple):
    """A file to download: mirrors to try in order, its checksum, and the folder below the root to unpack it in."""

    urls: Sequence[str]
    md5: str
    folder: str = ""


def read_files(
    config: TorchvisionConfig, folder: str, archives: Sequence[Archive], read: Callable[[Path], Arrays]
) -> Arrays:
    """Read a data set, which is downloaded first if its files are missing and the config allows it.

    Torchvision's own classes are not used to read: some of them unpickle what they find.

    Args:
        config: its section.
        folder: the folder below `config.root` that holds the files.
        archives: where the files come from.
        read: reads them from the folder; it may raise whatever it trips over in damaged files.

    Raises:
        UserError: the files are missing or damaged, or cannot be downloaded.
    """
    root = config.root.expanduser()
    try:
        return _checked(read(root / folder))
    except Exception as error:
        if not config.download:
            raise UserError(
                f"data set {config.name!r} is missing or damaged: there is no complete {root / folder} "
                f"({_in_short(error)}); set data.download=true to fetch it, or data.root to the folder that holds it"
            ) from error
    try:
        for archive in archives:
            _download(archive, root)
        return _checked(read(root / folder))
    except Exception as error:
        raise UserError(f"data set {config.name!r} could not be downloaded into {root}: {_in_short(error)}") from error


def _checked(arrays: Arrays) -> Arrays:
    """Return `arrays`; raises `ValueError` if there are none, or if the labels do not belong to them."""
    pixels, labels, classes = arrays
    if not len(pixels):
        raise ValueError("it holds no images")
    if labels is not None and (len(labels) != len(pixels) or labels.min() < 0 or labels.max() >= len(classes)):
        raise ValueError(f"its labels are not those of {len(pixels)} images in {len(classes)} classes")
    return arrays


def _download(archive: Archive, root: Path) -> None:
    """Download and unpack a file from the first mirror that has it."""
    for url in archive.urls:
        try:
            download_and_extract_archive(url, str(root / archive.folder), md5=archive.md5)
        except OSError:
            if url == archive.urls[-1]:
                raise
        else:
            return


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class MNISTFormat(ArraySource):
    """Base class of MNIST and data sets in its format: 28 x 28 gray pixels, uint8, ten classes.

    Attributes:
        build: torchvision's class.
    """

    build: ClassVar[type[datasets.MNIST]]

    def __init__(self, config: TorchvisionConfig, split: str = "train") -> None:
        """Read the split `train` or `t10k`.

        Raises:
            UserError: the files are missing or damaged, or cannot be downloaded.
        """
        folder = f"{self.build.__name__}/raw"
        archives = [
            Archive([f"{mirror}{name}" for mirror in self.build.mirrors], md5, folder)
            for name, md5 in self.build.resources
        ]

        def read(raw: Path) -> Arrays:
            pixels = read_image_file(str(raw / f"{split}-images-idx3-ubyte")).unsqueeze(1)
            return Arrays(pixels, read_label_file(str(raw / f"{split}-labels-idx1-ubyte")), self.build.classes)

        self._config = config
        super().__init__(*read_files(config, folder, archives, read))

    def official_validation(self) -> MNISTFormat:
        """Return the test images."""
        return type(self)(self._config, "t10k")
