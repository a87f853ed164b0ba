"""Decoding every picture of a source once, to leave out those that cannot be read; what was found is recorded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import PIL
from PIL import Image
from torch import Tensor

from rcg.core.console import progress, warn
from rcg.core.errors import UserError
from rcg.data.picture_folder import LISTED
from rcg.data.picture_source import File, Listing, PictureSource
from rcg.data.pictures import TRANSIENT, reason, retried, to_rgb
from rcg.data.records import digest_of, recall, record


def readable(source: PictureSource, listing: Listing, whole: bool) -> list[File]:
    """Return the readable pictures of a source's listing, and warn of what is left out.

    Args:
        source: where they are.
        listing: of the source.
        whole: every picture counts: an unreadable one is an error.

    Raises:
        UserError: there are none.
    """
    if not listing.pictures:
        found = f"; it holds {listing.others}" if listing.others else ""
        raise UserError(f"{source} (data.root) holds no pictures such as .png or .jpg files{found}")
    if listing.passed_over:
        warn(f"{source.root}: passed over {listing.passed_over}")
    checked = check(source, listing.pictures)
    broken = checked.broken
    files = [file for file in listing.pictures if file.path not in broken]
    if not files:
        raise UserError(f"{source} (data.root) holds nothing but {_summary(broken)}")
    if broken and whole:
        raise UserError(
            f"{source.root} holds {_summary(broken)}; an evaluation counts every picture: repair or delete it"
        )
    if broken:
        warn(f"{source.root}: left out {_summary(broken)}")
    if checked.brightest is not None and checked.brightest < 0.5:
        warn(
            f"{source.root}: no picture with 16 bits is brighter than {round(checked.brightest * 65535)} of 65535, so "
            f"that they are dark: if less than 65535 is white in them, multiply their values"
        )
    return files


def _summary(broken: dict[str, str]) -> str:
    listed = "; ".join(f"{path} ({reason})" for path, reason in list(broken.items())[:LISTED])
    noun = "picture" if len(broken) == 1 else "pictures"
    such_as = "among them " if len(broken) > LISTED else ""
    return f"{len(broken)} unreadable {noun}, {such_as}{listed}"


class Check(NamedTuple):
    """What decoding all pictures of a source found.

    Attributes:
        broken: the reason for each unreadable picture, by path.
        brightest: the largest value in [0, 1] of pictures with 16 bits, None without such pictures.
    """

    broken: dict[str, str]
    brightest: float | None


def check(source: PictureSource, files: Sequence[File]) -> Check:
    """Decode all files of a source; the result is recorded until a file changes."""
    digest = digest_of(PIL.__version__, str(source.root.resolve()), files=(file[:3] for file in files))
    name = f"pictures-{digest}"
    known = recall(name)
    if known is not None:
        with suppress(TypeError):  # a record of something else
            return Check(**known)
    found, is_lasting = decode_all(source, files)
    if is_lasting:
        record(name, found._asdict())
    return found


class _Finding(NamedTuple):
    """What decoding one file found; `is_lasting`: another attempt would find the same."""

    broken: str = ""
    brightest: float | None = None
    is_lasting: bool = True


def decode_all(source: PictureSource, files: Sequence[File]) -> tuple[Check, bool]:
    """Return the check of all files, and whether another one would find the same."""

    def decode(file: File) -> _Finding:
        return _decode(source, file)

    with warnings.catch_warnings(action="ignore"), ThreadPool() as pool:  # Pillow's remarks on readable files
        found = pool.imap(decode, files, chunksize=16)
        shown = progress(found, desc="checking pictures", total=len(files), unit="file", delay=2, leave=False)
        findings = list(shown)
    broken = {file.path: finding.broken for file, finding in zip(files, findings, strict=True) if finding.broken}
    brightest = max((finding.brightest for finding in findings if finding.brightest is not None), default=None)
    return Check(broken, brightest), all(finding.is_lasting for finding in findings)


def _decode(source: PictureSource, file: File) -> _Finding:
    """Decode a picture; raises `UserError` if the disk fails."""
    place = source.where(file.path)
    try:
        pixels = retried(lambda: _draft(source, file))
    except Exception as error:  # decoders of damaged files raise whatever they trip over
        number = error.errno if isinstance(error, OSError) else None
        if number in TRANSIENT:
            raise UserError(f"picture {place} cannot be read: {reason(error, place)}; try again") from None
        return _Finding(broken=reason(error, place), is_lasting=number is None)
    return _Finding(brightest=pixels.max().item() if pixels.is_floating_point() else None)


def _draft(source: PictureSource, file: File) -> Tensor:
    with Image.open(source.open(file.path, file.row)) as image:
        image.draft(None, (32, 32))  # an eighth of the work for JPEG; the whole file is read nonetheless
        return to_rgb(image)
