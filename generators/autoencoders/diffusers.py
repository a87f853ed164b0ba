"""Any AutoencoderKL of diffusers, by its name on the hub or from a local folder."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any

from torch import Tensor

from rcg.config import ORIGIN, AutoencoderConfig
from rcg.core.contracts import Autoencoder, Space
from rcg.core.errors import UserError
from rcg.core.registry import AUTOENCODERS
from rcg.encoding.autoencoder import space_id
from rcg.generators.autoencoders._latents import Standardizer, draw_latents, mean_latents


class DiffusersConfig(AutoencoderConfig):
    """A published autoencoder, used as it is."""

    name: str = "diffusers"
    weights: Annotated[str, ORIGIN] = "stabilityai/sd-vae-ft-ema"
    """Name on the hub, or a local folder with config.json and safetensors."""
    subfolder: str = ""
    """Its folder there; `vae` in whole Stable Diffusion pipelines."""
    network: dict[str, Any] = {}
    """The network's own configuration; null: the one that comes with the weights."""


@AUTOENCODERS.register
class Diffusers(Autoencoder):
    """Maps images to random latents `(B, C, h, w)`, and latents to images.

    With `config.network` it builds the network alone: the caller loads its weights.

    Raises:
        UserError: diffusers is not installed, the weights cannot be loaded, or the down-sampling does not divide the
            image.
    """

    Config = DiffusersConfig
    decoder_keys = ("network.decoder.", "network.post_quant_conv.")

    def __init__(self, config: DiffusersConfig, image_size: int) -> None:
        network = _build(config)
        card = {key: value for key, value in dict(network.config).items() if not key.startswith("_")}
        super().__init__(config.model_copy(update={"network": card}), image_size)
        factor = 2 ** (len(card["block_out_channels"]) - 1)
        if image_size % factor:
            nearest = max(factor, round(image_size / factor) * factor)
            raise UserError(
                f"data.image_size is {image_size}, which the down-sampling of {config.weights} by {factor} does not "
                f"divide; the nearest that fits is {nearest}"
            )
        self.network = network
        self.shape = (card["latent_channels"], image_size // factor, image_size // factor)
        self.standardize = Standardizer(card.get("shift_factor") or 0.0, 1 / card["scaling_factor"])

    @cached_property
    def space(self) -> Space:
        """Latents `(C, h, w)`."""
        return Space(self.shape, id=space_id(self))

    def posterior(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to means and stds `(B, 2C, h, w)` of standardized latents."""
        normal = self.network.encode(image * 2 - 1).latent_dist
        return self.standardize.posterior(normal.mean, normal.std)

    def draw(self, posterior: Tensor) -> Tensor:
        """Draw latents `(B, C, h, w)`."""
        return draw_latents(posterior)

    def mean(self, posterior: Tensor) -> Tensor:
        """Return mean latents `(B, C, h, w)`."""
        return mean_latents(posterior)

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents `(B, C, h, w)` to images `(B, 3, H, W)` in [0, 1]; values outside are clamped."""
        image = self.network.decode(self.standardize.undo(latent)).sample
        return ((image + 1) / 2).clamp(0, 1)


def _build(config: DiffusersConfig) -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise UserError(
            "generator.autoencoder.name is diffusers, which is not installed: pip install 'rcg[diffusers]'"
        ) from None
    if config.network:
        return AutoencoderKL.from_config(config.network)
    try:
        return AutoencoderKL.from_pretrained(config.weights, subfolder=config.subfolder or None, use_safetensors=True)
    except Exception as error:  # of what is wrong with files of others, diffusers says some with any class
        raise UserError(
            f"generator.autoencoder.weights is {config.weights!r}, which is neither a folder nor a repository on the "
            f"hub that holds an AutoencoderKL ({next(iter(str(error).splitlines()), type(error).__name__)})"
        ) from None
