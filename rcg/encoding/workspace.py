"""The real images of an experiment and their representations, computed once and kept in its run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from rcg import config as config_file
from rcg.config import Experiment
from rcg.core import checkpoint
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.data.images import Images, Split, load_images
from rcg.data.views import Views
from rcg.distributed import launch as parallel
from rcg.encoding import cache
from rcg.encoding.representation import Representation, Transform, open_representation, restore_encoder
from rcg.encoding.run_folder import CONFIG

FITTED = 200_000
"""Most representations that a projection or a normalizer is fitted to."""


def open_images(experiment: Experiment, accelerator: Accelerator) -> Split:
    """Open the data set, on the first process alone at first: it may have to download or check files."""
    with accelerator.main_process_first():
        return load_images(experiment.data)


class Real(NamedTuple):
    """What generated representations are compared with: images and z of their first views."""

    train: Images
    z: Tensor  # (N, D)
    held_out: Images
    held_out_z: Tensor  # (M, D)


def real_representations(experiment: Experiment, space: Space) -> Real:
    """Return the real images of an experiment with their representations.

    Raises:
        UserError: the experiment's representations are not those of `space`.
    """
    representation = open_representation(experiment)
    accelerator = parallel.start()
    images, validation = open_images(experiment, accelerator)
    z = train_z(images, representation, experiment, accelerator)
    if representation.space != space:
        raise UserError(
            f"{experiment.run / 'rdm'} generates representations of {space.id}, but the experiment's are those of "
            f"{representation.space.id}: give the configuration that the RDM was trained with"
        )
    held_out = held_out_z(validation, representation, experiment, accelerator)
    return Real(images, first_views(z), validation, first_views(held_out))


def fitted_representation(experiment: Experiment, space: Space | None) -> Representation:
    """Return the map from images to z of an experiment; with `space` the one that its generator was trained with.

    Raises:
        UserError: the experiment's representations are not those of `space`.
    """
    representation = open_representation(experiment)
    if representation.transform.needs_fit:
        accelerator = parallel.start()
        train_z(open_images(experiment, accelerator).train, representation, experiment, accelerator)
    if space is not None and representation.space != space:
        raise UserError(
            f"the generator paints from representations of {space.id}, but those of {experiment.run} are now of "
            f"{representation.space.id}: train the generator again"
        )
    return representation


def run_representation(run: Path, arm: str, space: Space | None) -> Representation:
    """Return the map from images to z of a run, by the configuration that its generator left in the folder `arm`.

    Raises:
        UserError: the run has no encoder, or not that of `space`.
    """
    path = run / arm / CONFIG
    if path.is_file():
        return fitted_representation(config_file.load(path).model_copy(update={"run": run}), space)
    kept = run / "encoder.safetensors"  # by Pipeline.save_pretrained; else the run is a converted checkpoint
    file = kept if kept.is_file() else run / "encoder" / checkpoint.FILE
    representation = Representation(restore_encoder(file), Transform("per_sample"))
    if space is not None and representation.space != space:
        raise UserError(f"{file} is not the encoder of {run / arm}")
    return representation


def train_z(images: Images, representation: Representation, experiment: Experiment, accelerator: Accelerator) -> Views:
    """Return z of the training images in all kept views; a transform that depends on data is fitted to them first."""
    rep = _rep(images, representation, experiment.data.kept_views, experiment, accelerator, "train")
    if representation.transform.needs_fit:
        _fit(representation, rep, images, experiment, accelerator)
    return rep.map(representation.transform)


def held_out_z(
    validation: Images, representation: Representation, experiment: Experiment, accelerator: Accelerator
) -> Views:
    """Return z of the held-out images, by the transform that `_train_z` has fitted."""
    rep = _rep(validation, representation, 1, experiment, accelerator, "validation")
    return rep.map(representation.transform)


def first_views(z: Views) -> Tensor:
    """Return z `(N, D)` of the images as they are."""
    positions = torch.arange(len(z))
    return z.rows(positions, torch.zeros_like(positions))


def kept_in_run(experiment: Experiment, what: str, facts: Mapping[str, Any]) -> Path:
    """Return the file of something that was fitted to representations, named by what decides it."""
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    return experiment.run / "representation" / f"{what}-{name}.safetensors"


def _rep(
    images: Images,
    representation: Representation,
    views: int,
    experiment: Experiment,
    accelerator: Accelerator,
    what: str,
) -> Views:
    return cache.representations(images, representation, views, experiment.run / "cache", accelerator, what)


def _fit(
    representation: Representation, rep: Views, images: Images, experiment: Experiment, accelerator: Accelerator
) -> None:
    """Fit the transform on one process and keep it in the run, under a name that says what it was fitted to."""
    settings = experiment.model_dump(mode="json", include={"projection", "normalize"})
    facts = {"encoder": representation.encoder_id, "images": images.fingerprint, "views": rep.views, **settings}
    path = kept_in_run(experiment, "transform", facts)
    if accelerator.is_main_process and not path.is_file():
        order = torch.randperm(len(rep), generator=torch.Generator().manual_seed(0))[:FITTED]
        representation.transform.fit(rep.rows(order, order % rep.views))
        checkpoint.save_tensors(path, representation.transform.state_dict(), facts)
    accelerator.wait_for_everyone()
    representation.transform.load(checkpoint.load(path).tensors)
