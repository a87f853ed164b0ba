"""Downloads from the hub, and uploads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from rcg.core.errors import UserError, nearest_file


class HubOptions(NamedTuple):
    """How repositories are read, as huggingface_hub calls it."""

    revision: str | None = None
    """Branch, tag or commit."""
    token: str | None = None
    """None: the one that `hf auth login` has saved."""
    cache_dir: Path | str | None = None
    local_files_only: bool = False
    """Take what was downloaded before."""


DEFAULTS = HubOptions()


def looks_remote(source: Path | str) -> bool:
    """Whether `source` can only be the name of a repository, `owner/name`: no such folder is there."""
    path = Path(source)
    return str(source).count("/") == 1 and not path.is_absolute() and not path.parent.is_dir()


def locate(source: Path | str, options: HubOptions = DEFAULTS) -> Path:
    """Return a local folder as it is, or that of a repository `owner/name` on the hub, downloaded.

    Raises:
        UserError: there is no such folder or repository, or it cannot be read.
    """
    folder = Path(os.path.expanduser(source))
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise UserError(f"{folder} is a file: give the folder of its run")
    if not looks_remote(source):
        raise UserError(f"there is no run {source}; {nearest_file(folder)}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        files = ["*.safetensors", "README.md"]
        return Path(snapshot_download(str(source), allow_patterns=files, **options._asdict()))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{source} is neither a local folder nor a repository on the hub that can be read ({reason})"
        ) from None


def upload(folder: Path, repository: str, private: bool, token: str | None) -> str:
    """Upload a folder to `owner/name`, which is created where it is not there; return the address.

    Raises:
        UserError: nothing can be written there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        message = "Upload rcg pipeline"
        return str(api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message=message))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{repository} on the hub cannot be written ({reason}): log in with hf auth login") from None
