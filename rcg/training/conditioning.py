"""What the networks of an experiment are told of the images that they learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import Tensor

from rcg.config import Experiment, RDMConfig
from rcg.core import checkpoint
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.data.images import Images
from rcg.data.views import Views
from rcg.encoding import clusters
from rcg.encoding.representation import Representation
from rcg.encoding.workspace import first_views, held_out_z, kept_in_run, train_z
from rcg.training import vectors as conditions


class Told(NamedTuple):
    """What a generator is told of the images that it learns from, and of those held out."""

    space: Space | None = None
    z: Views | None = None  # (N, V, D)
    held_out_z: Views | None = None  # (M, 1, D)
    labels: Tensor | None = None  # (N,) in place of the images' own
    held_out_labels: Tensor | None = None  # (M,)
    facts: Mapping[str, Any] = {}


def what_it_is_told(
    condition: str,
    experiment: Experiment,
    representation: Representation | None,
    images: Images,
    validation: Images,
    accelerator: Accelerator,
) -> Told:
    """Return what a generator with this condition is told; `representation` is that of the experiment, if it is needed.

    Raises:
        UserError: there are no labels, or the run's RDM generates other representations.
    """
    if condition == "class":
        return Told(label_space(images))
    if representation is None:
        return Told()
    z = train_z(images, representation, experiment, accelerator)
    if representation.transform.needs_fit:
        check_rdm(condition, experiment, representation)
    held_out = held_out_z(validation, representation, experiment, accelerator)
    if condition == "representation":
        return Told(representation.space, z, held_out)
    found = _clusters(experiment, representation, images, z, accelerator)
    near = clusters.assign(first_views(held_out), found.centers)
    facts = {"clusters": {"counts": found.counts, "representation": representation.space.id}}
    return Told(found.space, labels=found.labels, held_out_labels=near, facts=facts)


def _clusters(
    experiment: Experiment, representation: Representation, images: Images, z: Views, accelerator: Accelerator
) -> clusters.Clusters:
    """Return the clusters of the training images' first views, computed once and kept in the run."""
    number = experiment.clusters or clusters.suitable(len(images), len(images.classes))
    if number > len(images):
        raise UserError(f"clusters is {number}, but there are {len(images)} training images: choose fewer")
    facts: dict[str, Any] = {"representation": representation.space.id, "images": images.fingerprint}
    facts |= {"clusters": number, "seed": experiment.seed}
    path = kept_in_run(experiment, "clusters", facts)
    return clusters.kept(lambda: first_views(z), number, experiment.seed, facts, path, accelerator)


def rdm_conditions(config: RDMConfig, images: Images) -> tuple[Space | None, Tensor | None]:
    """Return the space of what the RDM is told of each training image, and these labels `(N,)` or vectors `(N, D)`."""
    if config.vectors is not None:
        vectors = conditions.read(config.vectors)
        if len(vectors) != len(images.source):
            raise UserError(
                f"{config.vectors} holds {len(vectors)} vectors, but the data set has {len(images.source)} images: "
                f"one row per image is needed, in the order of the data set"
            )
        return Space((vectors.shape[1],), id="vectors"), vectors[images.indices]
    return (label_space(images), images.labels) if config.condition == "class" else (None, None)


def label_space(images: Images) -> Space:
    """Return the space of the images' classes; raises `UserError` where they have none."""
    if images.labels is None:
        raise UserError("condition is class, but the data set has no labels: set condition to none or representation")
    return Space((), vocab=len(images.classes), id="labels")


def check_rdm(condition: str, experiment: Experiment, representation: Representation) -> None:
    """Refuse to train a generator for hours on another representation than the RDM of the same run generates."""
    path = experiment.run / "rdm" / checkpoint.FILE
    if path.is_file() and condition == "representation":
        space = Space.from_json(checkpoint.load(path).facts["data"])
        if space != representation.space:
            raise UserError(
                f"{path} generates representations of {space.id}, but the generator would be trained on those "
                f"of {representation.space.id}: train the RDM again (tools/train_rdm.py --overwrite) or choose another "
                f"run="
            )
