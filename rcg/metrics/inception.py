"""Features of the InceptionV3 behind the FID, and the figures that torch-fidelity computes from them."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from rcg.core import pretrained as weights
from rcg.core.errors import UserError
from rcg.metrics.bootstrap import Spread
from rcg.visual.grids import to_uint8

TAPS = ("64", "192", "768", "2048")
LOGITS = "logits_unbiased"
SPATIAL = "spatial"
DEEP = ("2048", LOGITS)
"""Outputs that need the layers after Mixed_6."""


class Inception(nn.Module):
    """Maps images to features of torch-fidelity's InceptionV3.

    Attributes:
        network: torch-fidelity's extractor.
        taps: names of the features.
    """

    def __init__(self, path: Path | str | None, *taps: str) -> None:
        """Read weights in torch-fidelity's format from `path`; None: its own, downloaded where they are not yet here.

        A tap is 64, 192, 768, 2048 or logits_unbiased.

        Raises:
            UserError: the file is missing, holds more than tensors, does not fit, or lacks the layers of a tap.
        """
        super().__init__()
        self.taps = taps
        # torch-fidelity would run code that a file carries: what this reads first is known to carry none.
        tensors = {} if path is None else weights.read(path)
        file = None if path is None else str(path)
        try:
            self.network = FeatureExtractorInceptionV3("inception", list(taps), feature_extractor_weights_path=file)
        except (URLError, TimeoutError) as error:
            raise UserError(f"torch-fidelity's InceptionV3 cannot be downloaded here ({error})") from None
        except RuntimeError as error:
            raise UserError(
                f"{path} does not fit torch-fidelity's InceptionV3 ({str(error).splitlines()[0]})"
            ) from None
        self.network.to(memory_format=torch.channels_last)  # on a CPU 1.4 times as fast
        last = tensors.get("Mixed_7c.branch1x1.conv.weight")
        if {*taps} & {*DEEP} and last is not None and not last.any():
            raise UserError(f"{path} lacks the layers after Mixed_6 (they are zero): its taps are 64, 192 and 768")

    def forward(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to the features `(B, D)` of the first tap."""
        features: Tensor = self.network(to_uint8(image))[0]
        return features.flatten(1)

    @property
    def has_spatial(self) -> bool:
        """Whether the network runs far enough for the features of the sFID."""
        return bool({"768", *DEEP} & {*self.taps})

    @torch.no_grad()
    def features(self, image: Tensor) -> dict[str, Tensor]:
        """Map bytes `(B, 3, H, W)` to the features `(B, D)` of all taps, and to `spatial` where they can be had.

        Spatial features are the first 7 channels of a 17 x 17 layer, `(B, 2023)` in the order of guided-diffusion's
        published statistics: rows, columns, channels.
        """
        spatial: list[Tensor] = []
        layer = self.network.Mixed_6d.branch1x1.conv  # mixed_6/conv of the original graph
        hook = layer.register_forward_hook(lambda module, inputs, output: spatial.append(output[:, :7]))
        try:
            found = dict(zip(self.taps, (x.flatten(1) for x in self.network(image)), strict=True))
        finally:
            hook.remove()
        return found | ({SPATIAL: spatial[0].permute(0, 2, 3, 1).flatten(1)} if self.has_spatial else {})


def inception_score(logits: Tensor, splits: int = 10) -> Spread:
    """Return the Inception score of `logits` `(N, K)` over parts (Salimans et al., 2016), by torch-fidelity."""
    found = isc_features_to_metric(logits.cpu(), splits)
    return Spread(found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD])


def subset_size(generated: Tensor, real: Tensor) -> int:
    """Return the size of the KID's subsets: 1000 as usual, half of the smaller set where there are not so many."""
    smaller = min(len(generated), len(real))
    return 1000 if smaller >= 1000 else max(2, smaller // 2)


def kernel_distance(generated: Tensor, real: Tensor) -> Spread:
    """Return the kernel Inception distance of `(M, D)` and `(N, D)` over 100 subsets (Binkowski et al., ICLR 2018).

    It is computed by torch-fidelity.
    """
    size = subset_size(generated, real)
    found = kid_features_to_metric(generated.cpu(), real.cpu(), kid_subset_size=size, verbose=False)
    return Spread(found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD])
