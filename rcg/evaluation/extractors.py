"""The networks in whose features images are compared."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.encoding.representation import Representation, open_judge
from rcg.evaluation.samples import ImageBatch
from rcg.metrics.inception import LOGITS, SPATIAL, Inception
from rcg.metrics.memorization import pixel_features, pixels_side


@dataclass(frozen=True)
class FeatureExtractor:
    """Maps batches of images to named features.

    Attributes:
        name: for people.
        facts: everything that decides the features, JSON-serializable.
        compute: maps a batch, on the device of the evaluation, to named features `(B, D)`.
        taps: their names; sets of images are compared in the first.
        distance: name of the Frechet distance in that space.
        is_own: whether it is the encoder of the run that is evaluated.
        is_inception: whether it is an Inception network, to which published statistics and the KID belong.
    """

    name: str
    facts: dict[str, Any]
    compute: Callable[[ImageBatch], dict[str, Tensor]]
    taps: tuple[str, ...]
    distance: str = "FD"
    is_own: bool = False
    is_inception: bool = False

    def has_encoder(self, name: str) -> bool:
        """Whether it compares in the space of the encoder `name`, given as `name:digest`."""
        return str(self.facts.get("encoder", "")).partition("/")[0] == name


def inception_extractor(path: Path | None, tap: str, device: torch.device) -> FeatureExtractor:
    """Open torch-fidelity's InceptionV3; without a path its own weights, downloaded where they are not yet here.

    Raises:
        UserError: there are no weights, or they do not fit.
    """
    taps = [tap, LOGITS] if tap == "2048" else [tap]
    network = Inception(path, *taps).to(device)
    spatial = (SPATIAL,) if network.has_spatial else ()
    facts = {
        "network": "torch-fidelity InceptionV3",
        "weights": checkpoint.digest(network.state_dict()),
        "tap": tap,
        "resize": "299 px, bilinear as TensorFlow 1 does it",
    }
    return FeatureExtractor(
        f"inception-{tap}",
        facts,
        lambda batch: network.features(batch.images),
        (*network.taps, *spatial),
        distance="FID" if tap == "2048" else f"FID-{tap}",
        is_inception=True,
    )


def encoder_extractor(
    name: str, representation: Representation, device: torch.device, is_own: bool = False
) -> FeatureExtractor:
    """Compare in the space of a copy of a frozen encoder, projection and normalizer."""
    representation = copy.deepcopy(representation).to(device)  # others use the transform on the CPU
    facts = {"encoder": representation.space.id, "width": representation.space.shape[0]}
    return FeatureExtractor(name, facts, lambda batch: {"z": representation(batch.images / 255)}, ("z",), is_own=is_own)


def condition_extractor() -> FeatureExtractor:
    """Store the representations that samples were conditioned on."""

    def compute(batch: ImageBatch) -> dict[str, Tensor]:
        assert batch.z is not None
        return {"z": batch.z.float()}

    return FeatureExtractor("condition", {"stores": "condition"}, compute, ("z",))


def pixel_extractor(size: int) -> FeatureExtractor:
    """Store images of `size` px as bytes, large ones averaged down."""
    facts = {"pixels": pixels_side(size)}
    return FeatureExtractor("pixels", facts, lambda batch: {"pixels": pixel_features(batch.images)}, ("pixels",))


def image_keeper() -> FeatureExtractor:
    """Return images as their own features, to store them as pictures."""
    return FeatureExtractor("images", {"stores": "images"}, lambda batch: {"images": batch.images}, ("images",))


@dataclass(frozen=True)
class MetricOptions:
    """With what images are compared.

    Attributes:
        reference: `train`, `validation`, a folder of images, or an .npz file.
        resamples: for stds; fewer than 2: none.
        inception: file of torch-fidelity's InceptionV3; `none`: without it; None: its own, if it can be downloaded.
        tap: its layer.
        encoders: `own`, YAML files with an encoder section, or YAML; none: the run's own, where there is one.
    """

    reference: str
    resamples: int
    inception: str | None
    tap: str
    encoders: Sequence[str]

    def open_extractors(
        self, own: Callable[[], Representation] | None, size: int, accelerator: Accelerator
    ) -> tuple[list[FeatureExtractor], list[str]]:
        """Open the networks that compare images; return them, and warnings about missing ones that nobody asked for.

        Args:
            own: opens the encoder of the run that is evaluated; None: there is no run.
            size: side of the images in pixels, for encoders that do not say.
            accelerator: the processes, and the device.

        Raises:
            UserError: one that was asked for cannot be opened, or there is none at all.
        """
        extractors: list[FeatureExtractor] = []
        warnings: list[str] = []
        if self.inception != "none":
            try:
                with accelerator.main_process_first():  # it may have to be downloaded
                    path = Path(self.inception) if self.inception else None
                    extractors.append(inception_extractor(path, self.tap, accelerator.device))
            except UserError as error:
                if self.inception is not None:
                    raise
                warnings.append(f"no FID: {error}; name a file with --inception FILE")
        for text in self.encoders or (["own"] if own else []):
            try:
                extractors.append(_open_own(own, accelerator) if text == "own" else _open(text, size, accelerator))
            except UserError as error:
                if self.encoders:
                    raise
                warnings.append(f"no comparison in the space of the run's encoder: {error}")
        if not extractors:
            raise UserError(f"there is nothing to compare images with ({'; '.join(warnings)})")
        return list(_named_apart(extractors)), warnings


def _named_apart(extractors: Sequence[FeatureExtractor]) -> Iterator[FeatureExtractor]:
    """Yield extractors; of several with one name, those after the first get a number."""
    known: Counter[str] = Counter()
    for extractor in extractors:
        known[extractor.name] += 1
        number = known[extractor.name]
        yield extractor if number == 1 else replace(extractor, name=f"{extractor.name}-{number}")


def _open_own(own: Callable[[], Representation] | None, accelerator: Accelerator) -> FeatureExtractor:
    if own is None:
        raise UserError("--encoder own is the encoder of a run, but files are evaluated: name a YAML file")
    representation = own()
    name = f"own-{representation.encoder.config.name}"
    return encoder_extractor(name, representation, accelerator.device, is_own=True)


def _open(text: str, size: int, accelerator: Accelerator) -> FeatureExtractor:
    judge = open_judge(text, size)
    return encoder_extractor(judge.encoder.config.name, judge, accelerator.device)
