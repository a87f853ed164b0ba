"""Features of the FID's InceptionV3, and the Inception score and kernel distance, all by torch-fidelity."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from rcg.core import pretrained
from rcg.core.errors import UserError
from rcg.metrics.bootstrap import MeanStd
from rcg.visual.grids import to_uint8

LOGITS = "logits_unbiased"
SPATIAL = "spatial"
DEEP = ("2048", LOGITS)
"""Taps that need the layers after Mixed_6."""


class Inception(nn.Module):
    """Maps images to features of torch-fidelity's InceptionV3.

    Attributes:
        network: torch-fidelity's extractor.
        taps: names of the features.
    """

    def __init__(self, path: Path | str | None, *taps: str) -> None:
        """Load the network.

        Args:
            path: weights in torch-fidelity's format; None: its own, downloaded once.
            taps: names of the features: 64, 192, 768, 2048 or logits_unbiased.

        Raises:
            UserError: the file is missing, holds more than tensors, does not fit, or lacks the layers of a tap; or
                the weights cannot be downloaded.
        """
        super().__init__()
        self.taps = taps
        path = _published_file() if path is None else path
        tensors = pretrained.read_weights(path)
        # torch-fidelity executes pickled code: it gets the tensors that were read here, in a file in memory.
        file = io.BytesIO()
        torch.save(tensors, file)
        file.seek(0)
        try:
            self.network = FeatureExtractorInceptionV3("inception", list(taps), feature_extractor_weights_path=file)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} does not fit torch-fidelity's InceptionV3 ({reason})") from None
        pretrained.check_finite(tensors, path)
        self.network.to(memory_format=torch.channels_last)  # on a CPU 1.4 times as fast
        last = tensors.get("Mixed_7c.branch1x1.conv.weight")
        if {*taps} & {*DEEP} and last is not None and not last.any():
            raise UserError(f"{path} lacks the layers after Mixed_6 (they are zero): its taps are 64, 192 and 768")

    def forward(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to the features `(B, D)` of the first tap."""
        return self.network(to_uint8(image))[0].flatten(1)

    @property
    def has_spatial(self) -> bool:
        """Whether the network computes the layer of the sFID's features."""
        return bool({"768", *DEEP} & {*self.taps})

    @torch.no_grad()
    def features(self, image: Tensor) -> dict[str, Tensor]:
        """Map bytes `(B, 3, H, W)` to the features `(B, D)` of all taps, and `spatial` ones if there are any.

        Spatial features are the first 7 channels of a 17 x 17 layer, `(B, 2023)` in the order of guided-diffusion's
        published statistics: rows, columns, channels.
        """
        spatial: list[Tensor] = []
        layer = self.network.Mixed_6d.branch1x1.conv  # mixed_6/conv of the original graph
        with layer.register_forward_hook(lambda module, inputs, output: spatial.append(output[:, :7])):
            features = dict(zip(self.taps, (x.flatten(1) for x in self.network(image)), strict=True))
        if self.has_spatial:
            features[SPATIAL] = spatial[0].permute(0, 2, 3, 1).flatten(1)
        return features


def _published_file() -> Path:
    """Return the file of torch-fidelity's own weights, in torch's cache; it is downloaded where it is not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"torch-fidelity's InceptionV3 cannot be downloaded here ({error}): name its file, or none, as "
                f"--inception"
            ) from None
    return path


def inception_score(logits: Tensor, splits: int = 10) -> MeanStd:
    """Return the Inception score of `logits` `(N, K)` over parts of them (Salimans et al., 2016)."""
    scores = isc_features_to_metric(logits.cpu(), splits)
    return MeanStd(scores[KEY_METRIC_ISC_MEAN], scores[KEY_METRIC_ISC_STD])


def subset_size(generated: Tensor, real: Tensor) -> int:
    """Return the size of the KID's subsets: 1000 as usual, or half of the smaller set if that has fewer."""
    smaller = min(len(generated), len(real))
    return 1000 if smaller >= 1000 else max(2, smaller // 2)


def kernel_distance(generated: Tensor, real: Tensor) -> MeanStd:
    """Return the kernel Inception distance of `(M, D)` and `(N, D)` over 100 subsets (Binkowski et al., ICLR 2018)."""
    size = subset_size(generated, real)
    distances = kid_features_to_metric(generated.cpu(), real.cpu(), kid_subset_size=size, verbose=False)
    return MeanStd(distances[KEY_METRIC_KID_MEAN], distances[KEY_METRIC_KID_STD])
