"""Downloads from the hub."""

from __future__ import annotations

from pathlib import Path

from rcg.core.errors import UserError


def download(name: str, revision: str | None) -> Path:
    """Download the safetensors files of a repository `owner/name`, and return their folder.

    Raises:
        UserError: there is no such repository, or it cannot be read.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.safetensors", "README.md"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name} is neither a local folder nor a repository on the hub that can be read ({reason})"
        ) from None
