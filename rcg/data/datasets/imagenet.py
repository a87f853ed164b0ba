"""ImageNet (ILSVRC 2012): 1.28 million color photographs in 1,000 classes, and 50,000 for validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
from pydantic import TypeAdapter
from torchvision.datasets import imagenet

from rcg.config import RUNTIME, DataConfig, ImageSize
from rcg.core.console import warn
from rcg.core.errors import UserError
from rcg.core.registry import DATASETS
from rcg.data.picture_folder import PictureFolder
from rcg.data.picture_source import PictureFiles, class_labels

DEVKIT, TRAIN, VALIDATION = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
LARGEST_META = 2**24
"""Most bytes of the file that names the classes."""


class ImageNetConfig(DataConfig):
    """Settings of ImageNet."""

    name: str = "imagenet"
    image_size: ImageSize = 256
    """Side of the square images after preprocessing, in pixels."""
    root: Annotated[Path, RUNTIME] = Path("data")
    """Folder of the three archives, or of the files that were unpacked from them."""


@DATASETS.register
class ImageNet(PictureFiles):
    """Color photographs of any size, 1,000 classes, uint8."""

    Config = ImageNetConfig

    def __init__(self, config: ImageNetConfig) -> None:
        """List the files of the training split; unpack the archives on first use.

        Raises:
            UserError: both the archives and the unpacked files are missing or damaged.
        """
        self._home = config.root.expanduser()
        meta = self._unpacked("meta.bin", DEVKIT, imagenet.parse_devkit_archive)
        train = self._unpacked("train", TRAIN, imagenet.parse_train_archive)
        self._train = PictureFolder(train)
        listing = self._train.find()
        files = listing.pictures
        self._folders = sorted({file.path.partition("/")[0] for file in files})
        names = _class_names(meta)
        unknown = [name for name in self._folders if name not in names]
        if unknown or not files:
            found = f"the folder {unknown[0]}, which {meta} does not name" if unknown else "no pictures"
            raise UserError(f"{train} holds {found}: unpack {TRAIN} there")
        if listing.passed_over or len(self._folders) < len(names):
            rest = f", and {listing.passed_over}" if listing.passed_over else ""
            warn(f"{train} holds {len(self._folders)} of {len(names)} classes{rest}: was it unpacked to the end?")
        classes = tuple(", ".join(names[folder]) for folder in self._folders)
        super().__init__(self._train, files, class_labels(files, self._train, self._folders, train), classes)

    def official_validation(self) -> PictureFiles:
        """Return the images of the validation split; raises `UserError` if they are missing or damaged."""
        home = self._unpacked("val", VALIDATION, imagenet.parse_val_archive)
        place = PictureFolder(home, after=self._train)
        files = place.find().pictures
        if not files:
            raise UserError(f"{home} holds no pictures: unpack {VALIDATION} there")
        return PictureFiles(place, files, class_labels(files, place, self._folders, self._train.root), self.classes)

    def _unpacked(self, name: str, archive: str, unpack: Callable[[str], None]) -> Path:
        """Return a file or folder of the root, unpacked from its archive if it is not there."""
        path = self._home / name
        if not path.exists():
            try:
                unpack(str(self._home))
            except Exception as error:  # readers of damaged archives raise whatever they trip over
                share = ", or take a share of the training images with data.validation" * (name == "val")
                raise UserError(
                    f"ImageNet is missing or damaged in {self._home} (data.root): there is neither {name} nor a "
                    f"complete {archive}; put {DEVKIT}, {TRAIN} and {VALIDATION} there, from "
                    f"https://image-net.org/download-images{share}"
                ) from error
        return path


def _class_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the names of each class by its folder, from the file that torchvision wrote; no code in it is run."""
    try:
        if path.stat().st_size > LARGEST_META:
            raise ValueError("it is too large")
        names, _ = torch.load(path, weights_only=True)
        return TypeAdapter(dict[str, tuple[str, ...]]).validate_python(names)
    except Exception as error:  # damaged pickles raise whatever they trip over
        raise UserError(
            f"{path} is damaged, or not the list of classes that torchvision writes: delete it, and put {DEVKIT} there"
        ) from error
