"""What a file is by its content: a download that went wrong looks like a weight file by its name alone."""

from __future__ import annotations

import zipfile
from enum import Enum
from pathlib import Path

from rcg.core.errors import UserError

HEAD = 512
"""Bytes that tell what a file is."""
AGAIN = "download it again"
UNPACK = "unpack it and name the weight file inside"
MISTAKEN = {
    b"PK\x05\x06": f"an empty zip archive: {AGAIN}",
    b"\x1f\x8b": f"compressed by gzip: {UNPACK}",
    b"BZh": f"compressed by bzip2: {UNPACK}",
    b"\xfd7zXZ\x00": f"compressed by xz: {UNPACK}",
    b"(\xb5/\xfd": f"compressed by zstd: {UNPACK}",
    b"7z\xbc\xaf'\x1c": f"a 7z archive: {UNPACK}",
    b"\x93NUMPY": "a NumPy array: weights of PyTorch or safetensors are expected",
    b"\x89HDF": "an HDF5 file, of Keras perhaps: weights of PyTorch or safetensors are expected",
    b"GGUF": "a GGUF file: weights of PyTorch or safetensors are expected",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run git lfs pull, or download the file",
}
"""What files that are no weights begin with, what they are, and what to do about them."""
TEXTS = {
    b"<": f"a web page, a quota or a login page perhaps: {AGAIN}, and look at it in a browser first",
    b"{": f"a JSON text, perhaps a server's answer: {AGAIN}",
}
"""The same for texts, which may begin with spaces, in any case."""


class WeightFormat(Enum):
    """How a weight file is written."""

    SAFETENSORS = "safetensors"
    ZIP = "a zip archive of PyTorch"
    PICKLES = "pickles in a row, as PyTorch wrote them before version 1.6"


def weight_format(path: Path) -> WeightFormat:
    """Return how a weight file is written, whatever its name is.

    Raises:
        UserError: it is missing or something else; the sentence says what, and what to do.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the weight file in it")
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        raise UserError(f"{path} is empty, as a download that failed leaves it: {AGAIN}")
    if head[8:9] == b"{":  # after the length of the header
        return WeightFormat.SAFETENSORS
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return WeightFormat.ZIP
    if head[:1] == b"\x80":
        return WeightFormat.PICKLES
    for begin, what in MISTAKEN.items():
        if head.startswith(begin):
            raise UserError(f"{path} is {what}")
    for begin, what in TEXTS.items():
        if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(begin):
            raise UserError(f"{path} is {what}")
    if head[257:262] == b"ustar":
        raise UserError(f"{path} is a tar archive: {UNPACK}")
    raise UserError(
        f"{path} is truncated or not a weight file: it begins with {head[:8]!r}, neither like PyTorch's nor like "
        f"safetensors"
    )


def _check_zip(path: Path) -> None:
    """Raise `UserError` unless a zip archive is one that `torch.save` writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError):  # the list of entries comes last
        raise UserError(f"{path} is truncated, or a damaged zip archive: {AGAIN}") from None
    names = {Path(entry.filename).name for entry in entries}
    if "constants.pkl" in names:
        raise UserError(
            f"{path} is a TorchScript archive, whose code is never run: where you trust it, write its weights alone, "
            f"torch.save(torch.jit.load(FILE).state_dict(), ...)"
        )
    if "data.pkl" not in names:
        some = ", ".join(sorted(names)[:3])
        raise UserError(f"{path} is a zip archive of other files ({some}): {UNPACK}")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(f"{path} is compressed, which torch.save never does: {AGAIN}, or save its weights again")
