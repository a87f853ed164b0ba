"""Images with their representations: those of a folder, or those that a run was trained on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from rcg.core.console import progress
from rcg.core.errors import UserError
from rcg.data.picture_source import first_folder, labels_of
from rcg.editing.images import ImageFile, SquareImage, find_images
from rcg.encoding.workspace import Workspace, first_views
from rcg.pipeline import Pipeline

BATCH = 64
"""Images that are encoded at a time."""


@dataclass(frozen=True)
class EncodedImages:
    """Images with their representations, and their classes, if they have any.

    Attributes:
        source: where they are from, in words.
        names: of the images.
        z: `(N, d)`, on the CPU.
        load: returns the image of a number, `(3, S, S)` in [0, 1].
        labels: `(N,)` int64; None without classes.
        classes: names of the labels.
    """

    source: str
    names: Sequence[str]
    z: Tensor
    load: Callable[[int], Tensor]
    labels: Tensor | None = None
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)


def encode_folder(pipeline: Pipeline, folder: Path, names: Collection[str] | None = None) -> EncodedImages:
    """Encode the pictures of a folder; its sub-folders are the classes, if all pictures lie in two or more.

    Args:
        pipeline: whose encoder to use.
        folder: of the pictures.
        names: of the pictures that count; None: all.

    Raises:
        UserError: there are no pictures, or one cannot be read.
    """
    files = [file for file in find_images(folder) if names is None or file.name in names]
    labels, classes = labels_of([first_folder(file.name) for file in files])

    def load(number: int) -> Tensor:
        return files[number].read(pipeline.image_size).pixels

    return EncodedImages(
        str(folder), [file.name for file in files], _represent_files(pipeline, files), load, labels, classes
    )


def encode_training_images(pipeline: Pipeline, accelerator: Accelerator) -> EncodedImages:
    """Return the training images of a pipeline's run; their representations are read from the run's cache.

    Raises:
        UserError: the pipeline was not loaded from a run, or the run's images or encoder have changed.
    """
    saved = None if pipeline.run is None else pipeline.run.stage_folder(pipeline.config.folder_name).experiment()
    if pipeline.run is None or saved is None:
        raise UserError("only a run knows the images that it was trained on: give --images with a folder of pictures")
    work = Workspace(saved.model_copy(update={"run": pipeline.run.path}), accelerator)
    work.check_condition(pipeline.space)
    images = work.images.train
    names = [images.source.key(int(index)) for index in images.indices]

    def load(number: int) -> Tensor:
        return images[number]["image"]

    source = f"the training images of {pipeline.run.path}"
    return EncodedImages(source, names, first_views(work.z("train")), load, images.labels, images.classes)


def represent(pipeline: Pipeline, images: Sequence[SquareImage]) -> Tensor:
    """Return z `(N, d)` of images, on the CPU."""
    batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return torch.cat([pipeline.represent(torch.stack([image.pixels for image in batch])).cpu() for batch in batches])


def _represent_files(pipeline: Pipeline, files: Sequence[ImageFile]) -> Tensor:
    """Return z `(N, d)` of pictures, of which a batch is in memory at a time."""
    batches = []
    for start in progress(range(0, len(files), BATCH), desc="encoding", unit="batch"):
        images = [file.read(pipeline.image_size) for file in files[start : start + BATCH]]
        batches.append(represent(pipeline, images))
    return torch.cat(batches) if batches else torch.empty(0, *pipeline.representation.space.shape)
