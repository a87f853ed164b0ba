"""The published tokenizers: MAGE's (vqgan_jax_strongaug.ckpt), and those of taming-transformers."""

from __future__ import annotations

from pathlib import Path

from rcg.generators.published import _autoencoder

from rcg.core.registry import CONVERTERS


@CONVERTERS.register
class VQGAN:
    """Reads and writes files of the autoencoder `vqgan`."""

    part = "autoencoder"

    @staticmethod
    def read(path: Path, run: Path) -> list[Path]:
        """Turn a published file into `run`/autoencoder; raises `UserError` if it holds no such autoencoder."""
        return _autoencoder.read("vqgan", path, run)

    @staticmethod
    def write(run: Path, path: Path) -> None:
        """Turn `run`/autoencoder into a file in the original layout."""
        _autoencoder.write("vqgan", run, path)
