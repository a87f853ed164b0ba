"""What the data sets that torchvision reads have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rcg.config import DataConfig
from rcg.data import ArraySource
from rcg.errors import UserError


class TorchvisionConfig(DataConfig):
    """Settings of a data set that torchvision can fetch."""

    root: Path = Path("data")
    """Folder that holds the data set's own folder."""
    download: bool = False
    """Fetch the data set into `root` when it is not there."""


def fetch(config: TorchvisionConfig, build: Callable[..., Any], folder: str, **options: Any) -> Any:
    """Let torchvision's class `build` read its `folder` under `config.root`, and return what it made.

    Raises:
        UserError: the files are missing or damaged, or cannot be downloaded.
    """
    root = config.root.expanduser()
    try:
        return build(root, download=config.download, **options)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        if config.download:
            raise UserError(
                f"data set {config.name!r} could not be downloaded into {root}: {reason}"
            ) from error
        raise UserError(
            f"data set {config.name!r} is missing or damaged: there is no complete {root / folder}; "
            "set data.download=true to fetch it, or data.root to the folder that holds it"
        ) from error


class MNISTFormat(ArraySource):
    """What MNIST and the sets in its format share: 28 x 28 grey pixels, uint8, ten classes."""

    def __init__(self, config: TorchvisionConfig, build: Callable[..., Any]) -> None:
        """Read the training split that torchvision's class `build` knows.

        Raises:
            UserError: the files are missing or damaged, or cannot be downloaded.
        """
        data = fetch(config, build, f"{build.__name__}/raw", train=True)
        super().__init__(data.data.unsqueeze(1), torch.as_tensor(data.targets), data.classes)
