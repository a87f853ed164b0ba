"""Pictures as people have them, in folders, archives and tables, of any format, size and nesting."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rcg.config import RUNTIME, DataConfig
from rcg.core.console import warn
from rcg.core.errors import UserError, nearest_file
from rcg.core.registry import DATASETS
from rcg.data.archives import Archives
from rcg.data.manifest import Manifest
from rcg.data.picture_check import readable
from rcg.data.picture_folder import PictureFolder, some
from rcg.data.picture_source import (
    OFFICIAL,
    File,
    Listing,
    PictureFiles,
    PictureSource,
    class_labels,
    in_order,
    labels_of,
)
from rcg.data.pictures import reason
from rcg.data.shards import ARCHIVES, TABLES, Shard, find_shards
from rcg.data.tables import Tables


class ImageFolderConfig(DataConfig):
    """Settings of pictures in files."""

    name: str = "image_folder"
    root: Annotated[Path, RUNTIME] = Path("data")
    """Folder that is searched for pictures, a .zip, .tar, .parquet or .arrow file that holds them, or a folder of such
    files. Sub-folders are the classes if there are two or more and they hold all pictures. With the sub-folders, or
    files, `train` and `val` (or `test`), these are the official splits."""
    manifest: Annotated[Path | None, RUNTIME] = None
    """CSV file that gives each picture its class: paths below `root`, or in the archive, in the first column; null:
    classes are sub-folders, .cls files of WebDataset, or a column of the table."""
    label: Annotated[str | None, RUNTIME] = None
    """Column of the manifest, or of the table, that holds the classes; null: the one called label, or the only one."""


@DATASETS.register
class ImageFolder(PictureFiles):
    """The readable pictures of a folder, archives or tables, in the order of their paths."""

    Config = ImageFolderConfig

    def __init__(self, config: ImageFolderConfig, whole: bool = False) -> None:
        """Find the pictures and decode each once, unless an earlier check of the same files was recorded.

        Args:
            config: its section.
            whole: every picture counts: folders called train and val are like any other, and an unreadable picture is
                an error.

        Raises:
            UserError: there is nothing at data.root, or no readable picture, or the manifest does not fit.
        """
        place = open_place(config)
        self._validation: PictureSource | None = None
        if not whole:
            place, self._validation = place.parts()
        listing = place.find()
        self._manifest: Manifest | None = None
        if config.manifest is not None:
            self._manifest = _manifest_of(config, [(place, listing)], self._validation)
            _relabel(listing, place, self._manifest)
        files = readable(place, listing, whole)
        super().__init__(place, files, *labels_of([file.label for file in files], listing.classes))
        if not whole:
            _warn_of_classes(place, files, self.classes)

    def official_validation(self) -> PictureFiles | None:
        """Return the pictures of `val` or `test`.

        Raises:
            UserError: there are none, or they have other classes than the training pictures.
        """
        if self._validation is None:
            return None
        listing = self._validation.find()
        if self._manifest is not None:
            _relabel(listing, self._validation, self._manifest)
        files = readable(self._validation, listing, whole=False)
        labels = class_labels(files, self._validation, self.classes, self.place.root) if self.classes else None
        return PictureFiles(self._validation, files, labels, self.classes)


def open_place(config: ImageFolderConfig) -> PictureSource:
    """Return the pictures at data.root, whatever it is.

    Raises:
        UserError: it is missing, may not be read, or is a file of another kind; or data.label has nothing to choose
            from.
    """
    root = _existing(config.root)
    shards = find_shards(root) if root.is_dir() else [Shard(root, root.stem)]
    tables = [shard for shard in shards if shard.path.suffix.lower() in TABLES]
    if tables and len(tables) < len(shards):
        (archive, *_) = (shard.path.name for shard in shards if shard not in tables)
        raise UserError(
            f"{root} (data.root) holds tables such as {tables[0].path.name} and archives such as {archive}: name one"
        )
    if tables and config.manifest is not None:
        raise UserError(f"{root} (data.root) holds tables, whose rows a manifest cannot name: leave data.manifest out")
    if tables:
        return Tables(root, tables, config.label)
    if config.label is not None and config.manifest is None:
        raise UserError("data.label chooses a column of data.manifest, or of a table: give one, or leave it out")
    return Archives(root, shards) if shards else PictureFolder(root)


def _existing(root: Path) -> Path:
    """Return data.root with `~` expanded; raises `UserError` unless it is a folder or a file that holds pictures."""
    try:
        root = root.expanduser()
        if root.is_dir():
            os.scandir(root).close()  # fails where the folder may not be read
            return root
        if root.exists():
            if root.suffix.lower() in (*ARCHIVES, *TABLES):
                return root
            hint = "; gunzip makes a .tar file of it" if root.name.lower().endswith((".tar.gz", ".tgz")) else ""
            raise UserError(
                f"{root} (data.root) is a file, but a folder, or a file that ends in "
                f"{', '.join((*ARCHIVES, *TABLES))}, is expected{hint}"
            )
        missing = next(path for path in (root, *root.parents) if path.parent.is_dir())
    except (OSError, RuntimeError) as error:  # expanduser raises a RuntimeError for an unknown user
        raise UserError(f"folder {root} (data.root) cannot be read: {reason(error, root)}") from None
    where = "" if missing == root else f" (data.root is {root})"
    if missing == root and root.suffix.lower() in (*ARCHIVES, *TABLES):
        raise UserError(f"there is no file {root} (data.root); {nearest_file(root, root.suffix.lower())}")
    raise UserError(f"there is no folder {missing}{where}; {nearest_file(missing)}")


def _manifest_of(
    config: ImageFolderConfig, listings: list[tuple[PictureSource, Listing]], validation: PictureSource | None
) -> Manifest:
    """Read the manifest; raises `UserError` unless it has one row for each picture."""
    assert config.manifest is not None
    manifest = Manifest(config.manifest, config.label)
    if validation is not None:
        listings.append((validation, validation.find()))
    manifest.check([place.prefix + file.path for place, listing in listings for file in listing.pictures])
    return manifest


def _relabel(listing: Listing, place: PictureSource, manifest: Manifest) -> None:
    """Give the pictures of a listing the labels of a manifest."""
    listing.classes = in_order(manifest.labels.values())
    listing.pictures = [file._replace(label=manifest.labels[place.prefix + file.path]) for file in listing.pictures]


def _warn_of_classes(place: PictureSource, files: Sequence[File], classes: Sequence[str]) -> None:
    """Warn of classes that are not used, and of folders that are classes although they look like splits."""
    root = place.root
    names = {file.label for file in files if file.label is not None}
    loose = [file.path for file in files if file.label is None]
    if loose and len(names) > 1 and isinstance(place, PictureFolder):
        warn(f"{root}: its {len(names)} folders are no classes, because {some(loose)} lies beside them")
    elif loose and len(names) > 1:
        warn(f"{root}: its {len(names)} classes are not used, because {some(loose)} has none")
    splits = [name for name in classes if name.lower() in ("train", *OFFICIAL)]
    if splits:
        alternatives = " or ".join(OFFICIAL)
        warn(f"{root}: {', '.join(splits)} are taken for classes; official splits are train beside {alternatives}")
