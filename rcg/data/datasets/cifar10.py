"""CIFAR-10 (Krizhevsky, 2009): 60,000 color photographs of 32 x 32 pixels, 10,000 of them for testing."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets

from rcg.core.registry import DATASETS
from rcg.data.datasets._torchvision import Archive, Arrays, ArraySource, TorchvisionConfig, read_files

TRAIN = [f"data_batch_{number}" for number in range(1, 6)]
TEST = ["test_batch"]


class CIFAR10Config(TorchvisionConfig):
    """Settings of CIFAR-10."""

    name: str = "cifar10"


@DATASETS.register
class CIFAR10(ArraySource):
    """Color photographs, ten classes, uint8."""

    Config = CIFAR10Config

    def __init__(self, config: CIFAR10Config, files: Sequence[str] = TRAIN) -> None:
        """Read some files of images; raises `UserError` if they are missing or cannot be downloaded."""
        theirs = datasets.CIFAR10

        def read(folder: Path) -> Arrays:
            batches = [_read(folder / name) for name in files]
            pixels = np.concatenate([batch["data"].array for batch in batches]).reshape(-1, 3, 32, 32)
            labels = torch.tensor([label for batch in batches for label in batch["labels"]])
            return Arrays(torch.from_numpy(pixels), labels, _read(folder / theirs.meta["filename"])["label_names"])

        self._config = config
        archives = [Archive([theirs.url], theirs.tgz_md5)]
        super().__init__(*read_files(config, theirs.base_folder, archives, read))

    def official_validation(self) -> CIFAR10:
        """Return the test images."""
        return CIFAR10(self._config, TEST)


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = _PixelUnpickler(file, encoding="latin1").load()
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no dictionary")
    return content


class _PixelUnpickler(pickle.Unpickler):
    """Reads arrays of bytes, numbers and text alone: the published files are pickles, and a pickle may carry code."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Return what stands for a part of an array; raises `pickle.UnpicklingError` for anything else.

        None of it is numpy's: a pickle can have numpy take any bytes for the addresses of objects.
        """
        match module.removeprefix("numpy.").removeprefix("_core.").removeprefix("core."), name:
            case ("multiarray", "_reconstruct") | ("numpy", "ndarray"):
                return _Pixels
            case "numpy", "dtype":
                return _Bytes
            case "_codecs", "encode":
                return _encode
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which no image is made of")


class _Bytes:
    """The type of an array, which has to be that of bytes."""

    def __init__(self, name: str, *_: Any) -> None:
        if name != "u1":
            raise pickle.UnpicklingError(f"it holds an array of {name!r}, which pixels are not")

    def __setstate__(self, _: Any) -> None:
        """Bytes have no order."""


class _Pixels:
    """An array of bytes; `array` is there once its content was read."""

    array: np.ndarray

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Take the content of the array."""
        _, shape, kind, is_transposed, content = state
        if not isinstance(kind, _Bytes):
            raise pickle.UnpicklingError("it holds an array without a type")
        content = content.encode("latin1") if isinstance(content, str) else content
        self.array = np.frombuffer(content, np.uint8).reshape(shape, order="F" if is_transposed else "C")


def _encode(text: str, _: str) -> bytes:
    return text.encode("latin1")
