"""The published KL autoencoders of latent diffusion and Stable Diffusion, in the original or in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

from rcg.generators.published import _autoencoder

from rcg.core.registry import CONVERTERS


@CONVERTERS.register
class KL:
    """Reads and writes files of the autoencoder `kl`."""

    part = "autoencoder"

    @staticmethod
    def read(path: Path, run: Path) -> list[Path]:
        """Turn a published file into `run`/autoencoder; raises `UserError` if it holds no such autoencoder."""
        return _autoencoder.read("kl", path, run)

    @staticmethod
    def write(run: Path, path: Path) -> None:
        """Turn `run`/autoencoder into a file in the original layout."""
        _autoencoder.write("kl", run, path)
