"""The published VQ autoencoders of latent diffusion, alone (vq-f8) or in a checkpoint of a generator."""

from __future__ import annotations

from pathlib import Path

from rcg.generators.published import _autoencoder

from rcg.core.registry import CONVERTERS


@CONVERTERS.register
class VQ:
    """Reads and writes files of the autoencoder `vq`."""

    part = "autoencoder"

    @staticmethod
    def read(path: Path, run: Path) -> list[Path]:
        """Turn a published file into `run`/autoencoder; raises `UserError` if it holds no such autoencoder."""
        return _autoencoder.read("vq", path, run)

    @staticmethod
    def write(run: Path, path: Path) -> None:
        """Turn `run`/autoencoder into a file in the original layout."""
        _autoencoder.write("vq", run, path)
