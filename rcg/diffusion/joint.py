"""Joint training of an encoder and the generator that is conditioned on it (Preechakul et al., CVPR 2022)."""

from __future__ import annotations

from torch import Tensor, nn

from rcg.core.contracts import Encoder
from rcg.diffusion.estimate_loss import EstimateLoss
from rcg.diffusion.model import GenerativeModel


class JointModel(nn.Module):
    """An encoder and a generative model, trained as one module by the model's loss; each is exported by itself."""

    def __init__(self, model: GenerativeModel, encoder: Encoder, transform: nn.Module) -> None:
        """Train `encoder` with `model`, whose condition is `transform` of the encoder's representations."""
        super().__init__()
        self.model, self.encoder, self.transform = model, encoder, transform

    def represent(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1], with gradients, to the model's condition `(B, D)`."""
        cond: Tensor = self.transform(self.encoder(image).float())
        return cond

    def forward(self, x: Tensor, image: Tensor, estimate_loss: EstimateLoss | None = None) -> dict[str, Tensor]:
        """Return the model's losses of data `x` `(B, *S)`, given what the encoder makes of the images of it."""
        losses: dict[str, Tensor] = self.model(x, self.represent(image), estimate_loss)
        return losses
