"""Features of the InceptionV3 behind the FID, from a local file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from rcg import weights
from rcg.errors import UserError
from rcg.gallery import to_uint8


class Inception(nn.Module):
    """Maps images to the features of one layer of torch-fidelity's InceptionV3."""

    def __init__(self, path: Path | str, tap: str) -> None:
        """Read weights in torch-fidelity's format from `path`; `tap` is 64, 192, 768 or 2048.

        Raises:
            UserError: the file is missing, holds more than tensors, or does not fit.
        """
        super().__init__()
        # torch-fidelity would run code that a file carries: what this reads first is known to carry none.
        weights.read(path)
        try:
            self.network = FeatureExtractorInceptionV3("inception", [tap], feature_extractor_weights_path=str(path))
        except RuntimeError as error:
            raise UserError(
                f"{path} does not fit torch-fidelity's InceptionV3 ({str(error).splitlines()[0]})"
            ) from None

    def forward(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to features `(B, D)`."""
        features: Tensor = self.network(to_uint8(image))[0]
        return features.flatten(1)
