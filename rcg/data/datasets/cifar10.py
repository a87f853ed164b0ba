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
            pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
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
        content = _ArrayUnpickler(file, encoding="latin1").load()
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no dictionary")
    return content


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays, numbers and text alone: the published files are pickles, and a pickle may carry code."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Return what an array is made of; raises `pickle.UnpicklingError` for anything else."""
        match module.removeprefix("numpy.").removeprefix("_core.").removeprefix("core."), name:
            case "multiarray", "_reconstruct":
                return _empty_array  # its content follows, and numpy checks that it is all there
            case "numpy", ("ndarray" | "dtype"):
                found: Callable[..., Any] = getattr(np, name)
                return found
            case "_codecs", "encode":
                return _encode
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which no image is made of")


def _empty_array(*_: Any) -> np.ndarray:
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _encode(text: str, _: str) -> bytes:
    return text.encode("latin1")
