"""The contract of converters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from rcg.core.errors import UserError
from rcg.encoding.run_folder import RunFolder


class Converter(ABC):
    """Converts published checkpoints of one kind, which its file is named after.

    The folder of that name in a run must not exist before; `read` may write parts beside it.
    """

    def __init__(self, name: str | None = None) -> None:
        """Choose the component that a file becomes by `name`; null: it is read off the file.

        Raises:
            UserError: files of this kind become one component only.
        """
        if name is not None:
            raise UserError(f"--name {name} chooses between autoencoders: leave it out, or convert an autoencoder")

    @abstractmethod
    def read(self, path: Path, run: RunFolder) -> list[Path]:
        """Turn a published file into parts of `run`, and return the files that were written.

        Raises:
            UserError: the file is of another kind, or its tensors do not fit the network.
        """

    @abstractmethod
    def write(self, run: RunFolder, path: Path) -> None:
        """Turn parts of `run` into a file that the original code loads.

        Raises:
            UserError: the parts are missing, or the original code could not load them.
        """
