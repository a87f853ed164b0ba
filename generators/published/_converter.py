"""The contract of converters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from rcg.core.errors import UserError, nearest
from rcg.encoding.run_folder import RunFolder

MEANING = {
    "name": "chooses between autoencoders",
    "heads": "is for the generators dit and adm, and diffae",
    "head_width": "is for the generators adm and ldm",
    "encoder_heads": "is for the encoder in checkpoints of rdm, ldm and mage",
}


class Converter(ABC):
    """Converts published checkpoints of one kind, which its file is named after.

    The folder of that name in a run must not exist before; `read` may write parts beside it.
    """

    options: ClassVar[frozenset[str]] = frozenset()
    """Which of the arguments below say something about files of this kind."""
    names: ClassVar[tuple[str, ...]] = ()
    """The components that a file may become, where it has to be said which."""

    def __init__(
        self,
        name: str | None = None,
        heads: int | None = None,
        head_width: int | None = None,
        encoder_heads: int | None = None,
    ) -> None:
        """Say what files may not hold.

        Args:
            name: the component that a file becomes; None: it is read off the file.
            heads: attention heads of the generator; None: as the file says, or as published for its size.
            head_width: channels of a head, where their number follows from it.
            encoder_heads: attention heads of the encoder that the file carries.

        Raises:
            UserError: one is given that says nothing about files of this kind, an unknown name, or both `heads` and
                `head_width`.
        """
        given = {"name": name, "heads": heads, "head_width": head_width, "encoder_heads": encoder_heads}
        for option, value in given.items():
            if value is not None and option not in self.options:
                raise UserError(f"--{option.replace('_', '-')} {value} {MEANING[option]}: leave it out")
        if name is not None and name not in self.names:
            raise UserError(f"no published file of this kind becomes {name!r}; {nearest(name, self.names)}")
        if heads is not None and head_width is not None:
            raise UserError("--heads and --head-width say the same twice: give one of them")
        self.name, self.heads, self.head_width, self.encoder_heads = name, heads, head_width, encoder_heads

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
