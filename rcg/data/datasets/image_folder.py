"""A folder of pictures in any format that Pillow reads, of any size and nesting; unreadable files are left out."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Annotated, NamedTuple

import PIL
from PIL import Image
from torch import Tensor

from rcg.config import RUNTIME, DataConfig
from rcg.core.checkpoint import atomic
from rcg.core.console import progress, warn
from rcg.core.errors import UserError
from rcg.core.registry import DATASETS
from rcg.data.pictures import (
    TRANSIENT,
    File,
    PictureFiles,
    class_labels,
    existing_folder,
    find_pictures,
    folder_labels,
    is_picture,
    is_service,
    reason,
    retried,
    to_rgb,
)

OFFICIAL = ("val", "validation", "valid", "test")
"""Names of the folder beside `train` that holds the official validation split, the first choice first."""
_LISTED = 5  # most unreadable files that a message lists


class ImageFolderConfig(DataConfig):
    """Settings of a folder of pictures."""

    name: str = "image_folder"
    root: Annotated[Path, RUNTIME] = Path("data")
    """Folder that is searched for pictures. Its sub-folders are the classes if there are two or more and they hold all
    pictures. With the sub-folders `train` and `val` (or `test`), these are the official splits."""


@DATASETS.register
class ImageFolder(PictureFiles):
    """The readable pictures below a folder, in the order of their paths.

    Labels are the sub-folders of the first level, if there are at least two and every picture lies in one of them.
    """

    Config = ImageFolderConfig

    def __init__(self, config: ImageFolderConfig, whole: bool = False) -> None:
        """Find the pictures and decode each once, unless an earlier check of the same files was recorded.

        Args:
            config: its section.
            whole: every picture counts: folders called train and val are like any other, and an unreadable picture is
                an error.

        Raises:
            UserError: the folder is missing, or holds no readable picture.
        """
        root = existing_folder(config.root, "data.root")
        self._validation: Path | None = None
        if not whole:
            root, self._validation = _official(root)
        self._seen: set[tuple[int, int]] = set()
        files = _readable(root, self._seen, whole)
        super().__init__(root, files, *folder_labels([file.path for file in files]))
        if not whole:
            _warn_of_folders(root, self.paths, self.classes)

    def official_validation(self) -> PictureFiles | None:
        """Return the pictures of `val` or `test`.

        Raises:
            UserError: there are none, or they have other classes than the training pictures.
        """
        if self._validation is None:
            return None
        files = _readable(self._validation, set(self._seen), whole=False)
        labels = class_labels(files, self._validation, self.classes, self.root) if self.classes else None
        return PictureFiles(self._validation, files, labels, self.classes)


def _official(root: Path) -> tuple[Path, Path | None]:
    """Return the folders of the training and of the official validation split; without these, `root` and None."""
    entries = sorted(path for path in root.iterdir() if not is_service(path.name))
    folders = {path.name.lower(): path for path in entries if path.is_dir()}
    validation = next((folders[name] for name in OFFICIAL if name in folders), None)
    if "train" not in folders or validation is None:
        return root, None
    used = (folders["train"], validation)
    others = [path.name for path in entries if path not in used and (path.is_dir() or is_picture(path.name))]
    if others:
        warn(f"{root} has the splits {used[0].name} and {used[1].name}: left out {_some(others)} beside them")
    return used


def _readable(root: Path, seen: set[tuple[int, int]], whole: bool) -> list[File]:
    """Return the readable pictures below a folder, and warn of what is left out."""
    listing = find_pictures(root, seen)
    if not listing.pictures:
        found = f"; it holds {listing.others}" if listing.others else ""
        raise UserError(f"folder {root} (data.root) holds no pictures such as .png or .jpg files{found}")
    if listing.passed_over:
        warn(f"{root}: passed over {listing.passed_over}")
    check = _check(root, listing.pictures)
    broken = check.broken
    files = [file for file in listing.pictures if file.path not in broken]
    if not files:
        raise UserError(f"folder {root} (data.root) holds nothing but {_summary(broken)}")
    if broken and whole:
        raise UserError(f"{root} holds {_summary(broken)}; an evaluation counts every picture: repair or delete it")
    if broken:
        warn(f"{root}: left out {_summary(broken)}")
    if check.brightest is not None and check.brightest < 0.5:
        warn(
            f"{root}: no picture with 16 bits of gray is brighter than {round(check.brightest * 65535)} of 65535, so "
            f"that they are dark: if less than 65535 is white in them, multiply their values"
        )
    return files


def _warn_of_folders(root: Path, paths: Sequence[str], classes: Sequence[str]) -> None:
    """Warn of folders that are no classes although they look like it, or the other way around."""
    folders = {path.partition("/")[0] for path in paths if "/" in path}
    loose = [path for path in paths if "/" not in path]
    if loose and len(folders) > 1:
        warn(f"{root}: its {len(folders)} folders are no classes, because {_some(loose)} lies beside them")
    splits = [name for name in classes if name.lower() in ("train", *OFFICIAL)]
    if splits:
        alternatives = " or ".join(OFFICIAL)
        warn(f"{root}: {', '.join(splits)} are taken for classes; official splits are train beside {alternatives}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _summary(broken: dict[str, str]) -> str:
    listed = "; ".join(f"{path} ({reason})" for path, reason in list(broken.items())[:_LISTED])
    noun = "picture" if len(broken) == 1 else "pictures"
    such_as = "among them " if len(broken) > _LISTED else ""
    return f"{len(broken)} unreadable {noun}, {such_as}{listed}"


class Check(NamedTuple):
    """What decoding all files of a folder found.

    Attributes:
        broken: the reason for each unreadable file, by path.
        brightest: the largest value in [0, 1] of files with 16 bits of gray, None without such files.
    """

    broken: dict[str, str]
    brightest: float | None


def _check(root: Path, files: Sequence[File]) -> Check:
    """Decode all files; the result is recorded until a file changes."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
    digest = hashlib.blake2b(repr((PIL.__version__, str(root.resolve()))).encode(), digest_size=16)
    for file in files:
        digest.update(os.fsencode(file.path) + b"\0%d\0%d\0" % (file.size, file.mtime_ns))
    cache = home / "rcg" / f"pictures-{digest.hexdigest()}.json"
    with suppress(OSError, ValueError, TypeError):  # nothing was recorded, or only half of it
        return Check(**json.loads(cache.read_text(encoding="utf-8")))
    check, is_lasting = _decode_all(root, files)
    if is_lasting:
        with suppress(OSError), atomic(cache) as temporary:  # without a writable cache the check is merely repeated
            temporary.write_text(json.dumps(check._asdict()), encoding="utf-8")
    return check


class _Finding(NamedTuple):
    """What decoding one file found; `is_lasting`: another attempt would find the same."""

    broken: str = ""
    brightest: float | None = None
    is_lasting: bool = True


def _decode_all(root: Path, files: Sequence[File]) -> tuple[Check, bool]:
    """Return the check of all files, and whether another one would find the same."""
    with warnings.catch_warnings(action="ignore"), ThreadPool() as pool:  # Pillow's remarks on readable files
        found = pool.imap(_decode, [root / file.path for file in files], chunksize=16)
        shown = progress(found, desc="checking pictures", total=len(files), unit="file", delay=2, leave=False)
        findings = list(shown)
    broken = {file.path: finding.broken for file, finding in zip(files, findings, strict=True) if finding.broken}
    brightest = max((finding.brightest for finding in findings if finding.brightest is not None), default=None)
    return Check(broken, brightest), all(finding.is_lasting for finding in findings)


def _decode(path: Path) -> _Finding:
    """Decode a picture; raises `UserError` if the disk fails."""
    try:
        pixels = retried(lambda: _draft(path))
    except Exception as error:  # decoders of damaged files raise whatever they trip over
        number = error.errno if isinstance(error, OSError) else None
        if number in TRANSIENT:
            raise UserError(f"picture {path} cannot be read: {reason(error, path)}; try again") from None
        return _Finding(broken=reason(error, path), is_lasting=number is None)
    return _Finding(brightest=pixels.max().item() if pixels.is_floating_point() else None)


def _draft(path: Path) -> Tensor:
    with Image.open(path) as image:
        image.draft(None, (32, 32))  # an eighth of the work for JPEG; the whole file is read nonetheless
        return to_rgb(image)
