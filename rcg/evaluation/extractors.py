"""Who judges images, and by what: the networks whose features are compared, and the images to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator

from rcg import config
from rcg.config import DataConfig
from rcg.core.errors import UserError
from rcg.data.images import load_images
from rcg.encoding.representation import Representation, Transform, open_encoder
from rcg.evaluation.evaluate import Known, given_reference
from rcg.evaluation.features import View, encoder_view, inception_view
from rcg.evaluation.samples import Source, of_data
from rcg.metrics.frechet import Gaussian

PARTS = ("train", "validation")
"""The references that a data set brings."""


class Judges(NamedTuple):
    """The networks that a person asked for.

    Attributes:
        inception: file of torch-fidelity's InceptionV3; `none`: without it; None: its own, where it can be had.
        tap: its layer.
        encoders: `own`, YAML files with an encoder section, or YAML; none: the run's own, where there is one.
    """

    inception: str | None
    tap: str
    encoders: Sequence[str]

    def views(
        self, own: Callable[[], View] | None, size: int, accelerator: Accelerator, warnings: list[str]
    ) -> list[View]:
        """Open the networks; one that nobody asked for may be missing, which joins `warnings`.

        Args:
            own: opens the encoder of the run that is judged; None: there is no run.
            size: side of the images in pixels, for encoders that do not say.
            accelerator: the processes, and the device.
            warnings: sentences about what is missing.

        Raises:
            UserError: one that was asked for cannot be opened, or there is none at all.
        """
        found = list[View]()
        if self.inception != "none":
            try:
                with accelerator.main_process_first():
                    path = self.inception and Path(self.inception)
                    found.append(inception_view(path or None, self.tap, accelerator.device))
            except UserError as error:
                if self.inception is not None:
                    raise
                warnings.append(f"no FID: {error}; name a file with --inception FILE")
        for text in self.encoders or (["own"] if own else []):
            try:
                found.append(_own(own) if text == "own" else _encoder(text, size, accelerator))
            except UserError as error:
                if self.encoders:
                    raise
                warnings.append(f"no comparison in the space of the run's encoder: {error}")
        if not found:
            raise UserError(f"there is nothing to compare images with ({'; '.join(warnings)})")
        return found


def _own(own: Callable[[], View] | None) -> View:
    if own is None:
        raise UserError("--encoder own is the encoder of a run, but files are judged: name a YAML file")
    return own()


def _encoder(text: str, size: int, accelerator: Accelerator) -> View:
    section, given = config.parse_encoder(text)
    representation = Representation(open_encoder(section, given or size), Transform("none"))
    return encoder_view(section.name, representation, accelerator.device)


def known_images(data: DataConfig, accelerator: Accelerator) -> Known:
    """Open a data set, on the first process alone at first."""
    with accelerator.main_process_first():
        split = load_images(data)
    return Known(of_data(split.train, "training"), of_data(split.validation, "held-out"))


def chosen_reference(text: str, known: Known | None, size: int) -> tuple[Source | None, dict[str, Gaussian]]:
    """Return the images and the published statistics that `text` names; either may be missing.

    Args:
        text: `train` or `validation`, of the images `known`; a folder of images; an .npz file.
        known: the images of the experiment, where that is known.
        size: side of the images in pixels.

    Raises:
        UserError: it is none of that.
    """
    if text not in PARTS:
        return given_reference(Path(text), size)
    if known is None:
        raise UserError(
            f"--reference {text} needs the experiment: give --config FILE, or --reference with a "
            f"folder of images or an .npz file"
        )
    return (known.train if text == "train" else known.held_out), {}
