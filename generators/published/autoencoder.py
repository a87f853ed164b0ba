"""Published convolutional autoencoders, alone or in the checkpoint of a generator.

`kl` is that of latent diffusion and Stable Diffusion, in the original or in diffusers' layout; `vq` that of latent
diffusion (vq-f8); `vqgan` MAGE's tokenizer (vqgan_jax_strongaug.ckpt), and those of taming-transformers.
"""

from __future__ import annotations

from pathlib import Path

from rcg.core import pretrained
from rcg.core.errors import UserError
from rcg.core.registry import CONVERTERS
from rcg.encoding.run_folder import RunFolder
from rcg.generators.published._autoencoder import CODEBOOK, original, rebuild, save
from rcg.generators.published._converter import Converter
from rcg.generators.published._files import write

NAMES = ("kl", "vq", "vqgan")


@CONVERTERS.register
class AutoencoderConverter(Converter):
    """Reads and writes files of the autoencoders kl, vq and vqgan.

    Without a name, a file becomes kl without a codebook, vqgan with MaskGIT's layers, else vq.
    """

    options = frozenset({"name"})
    names = NAMES

    def read(self, path: Path, run: RunFolder) -> list[Path]:
        """Turn a published file into the run's autoencoder, and return the files that were written.

        Raises:
            UserError: the file holds no such autoencoder, or its tensors do not fit the network of their shapes.
        """
        return save(rebuild(pretrained.read_weights(path), path, self.name), run)

    def write(self, run: RunFolder, path: Path) -> None:
        """Turn the run's autoencoder into a file that the original code loads.

        Raises:
            UserError: the original code could not load it.
        """
        part = run.autoencoder.part()
        name = part.config["name"]
        is_known = name in NAMES if self.name is None else name == self.name
        if not is_known or (name != "kl" and CODEBOOK not in part.tensors):
            asked = self.name or "published"
            raise UserError(f"{run.autoencoder.path} holds no {asked} autoencoder that the original code could load")
        write(path, {"state_dict": original(run, prefix="")})
