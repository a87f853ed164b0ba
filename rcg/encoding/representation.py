"""A frozen encoder, a projection and a normalizer (`transform.py`): image -> rep -> z."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rcg.config import load_encoder_section
from rcg.core.contracts import Encoder, Space
from rcg.encoding.encoder import encoder_id, encoder_name, open_encoder
from rcg.encoding.transform import Transform


class Representation(nn.Module):
    """Maps images to normalized representations z, without gradients.

    Attributes:
        encoder: the frozen encoder.
        encoder_id: digest of its weights and of everything in its config that changes the output.
        transform: raw representation -> z.
    """

    def __init__(self, encoder: Encoder, transform: Transform) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.transform = transform
        self.encoder_id = encoder_id(encoder)

    @property
    def space(self) -> Space:
        """The space of z, `(d,)`; a transform that has to be fitted must have been."""
        return space_of(self.encoder, self.encoder_id, self.transform)

    def train(self, mode: bool = True) -> Representation:
        """Stay in evaluation mode, whatever the modules around do."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to raw representations `(B, D)`, float32."""
        rep: Tensor = self.encoder(image)
        return rep.float()

    def forward(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to z `(B, d)`."""
        z: Tensor = self.transform(self.encode(image))
        return z


def open_judge(text: str, size: int) -> Representation:
    """Open an encoder that only compares images: a YAML file with an encoder section, or YAML.

    Args:
        text: the file, or the section.
        size: side of the images in pixels, for encoders that do not say.

    Raises:
        UserError: there is no such file, or no encoder with weights in it.
    """
    section, image_size = load_encoder_section(text)
    return Representation(open_encoder(section, image_size or size), Transform("none"))


def space_of(encoder: Encoder, encoder_id: str, transform: Transform) -> Space:
    """Return the space of z, `(d,)`, of an encoder with its digest and a transform."""
    return Space((transform.width(encoder.width),), id=f"{encoder_name(encoder, encoder_id)}/{transform.id}")


def standardizes(z: Space, rep: Space) -> bool:
    """Whether z is the representation `rep` as it leaves an encoder, normalized over the data set."""
    encoder, _, transform = z.id.partition("/")
    return z.shape == rep.shape and rep.id == f"{encoder}/none" and transform.startswith("per_dataset-")
