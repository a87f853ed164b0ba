"""The conditioning of a training: labels, clusters, vectors or representations for each image."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rcg.config import TrainConfig
from rcg.core.console import warn
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.data.images import Images
from rcg.data.views import ShardedViews
from rcg.encoding.run_folder import StageFolder
from rcg.encoding.vectors import read_vectors
from rcg.encoding.workspace import Workspace, first_views

FROM_REPRESENTATIONS = ("representation", "cluster")
"""The conditions of a generator that are made from representations."""


class Conditioning(NamedTuple):
    """What a generator is conditioned on, or generates beside the image, for each image of both splits.

    Attributes:
        space: the space of the condition; None: it has none.
        paired: the space of the representation that is generated together with the image; None: the image alone.
        z: of the training images in all cached views `(N, V, D)`.
        validation_z: of the validation images `(M, 1, D)`.
        labels: of the training images in all cached views `(N, V)`, in place of their own.
        validation_labels: of the validation images `(M, 1)`, in place of their own.
        cluster_counts: number of views of training images in each cluster.
    """

    space: Space | None = None
    paired: Space | None = None
    z: ShardedViews | None = None
    validation_z: ShardedViews | None = None
    labels: Tensor | None = None
    validation_labels: Tensor | None = None
    cluster_counts: tuple[int, ...] = ()


class RDMConditioning(NamedTuple):
    """What an RDM is conditioned on.

    Attributes:
        space: the space of the condition; None: it has none.
        train: labels `(N, V)` or vectors `(N, V, C)` of the training images; V is 1 where all views have the same.
        validation_labels: labels `(M,)` of the validation images, for an RDM conditioned on classes or clusters.
        cluster_counts: number of views of training images in each cluster.
    """

    space: Space | None = None
    train: ShardedViews | None = None
    validation_labels: Tensor | None = None
    cluster_counts: tuple[int, ...] = ()


def generator_conditioning(work: Workspace) -> Conditioning:
    """Compute what the experiment's generator is conditioned on, or generates beside the image.

    Raises:
        UserError: there are no labels, or the run's RDM generates other representations.
    """
    config = work.experiment.require_generator()
    condition = config.condition
    if condition == "class":
        return Conditioning(label_space(work.images.train))
    if condition == "none" and not config.joint_representation:
        return Conditioning()
    z, validation_z = work.z("train"), work.z("validation")
    if config.joint_representation:
        return Conditioning(paired=work.representation.space, z=z, validation_z=validation_z)
    check_rdm(work, work.representation.space)
    if condition == "representation":
        return Conditioning(work.representation.space, z=z, validation_z=validation_z)
    fitted = work.clusters()
    nearest = fitted.nearest(first_views(validation_z))[:, None]
    return Conditioning(
        fitted.space, labels=fitted.labels, validation_labels=nearest, cluster_counts=tuple(fitted.counts)
    )


def rdm_conditioning(work: Workspace, fits: bool = True) -> RDMConditioning:
    """Return what the RDM is conditioned on, for each image.

    Args:
        work: the experiment.
        fits: whether images are encoded to find clusters; else the space of clusters is all that is known of them.

    Raises:
        UserError: there are no labels, or not one vector for each image, or fewer images than clusters.
    """
    config, (images, validation) = work.experiment.rdm, work.images
    if config.vectors is not None:
        vectors = read_vectors(config.vectors)
        if len(vectors) != len(images.source):
            raise UserError(
                f"{config.vectors} holds {len(vectors)} vectors, but the data set has {len(images.source)} images: "
                f"one row per image is needed, in the order of the data set"
            )
        space = Space((vectors.shape[1],), id="vectors")
        return RDMConditioning(space, ShardedViews([vectors[images.indices][:, None]]))
    if config.condition == "class":
        space, labels = label_space(images), images.labels
        assert labels is not None
        return RDMConditioning(space, ShardedViews([labels[:, None]]), validation.labels)
    if config.condition == "cluster" and not fits:
        return RDMConditioning(work.cluster_space)
    if config.condition == "cluster":
        fitted = work.clusters()
        nearest = fitted.nearest(first_views(work.z("validation")))
        return RDMConditioning(fitted.space, ShardedViews([fitted.labels]), nearest, tuple(fitted.counts))
    return RDMConditioning()


def label_space(images: Images) -> Space:
    """Return the space of the images' classes; raises `UserError` where they have none."""
    if images.labels is None:
        raise UserError("condition is class, but the data set has no labels: set condition to none or representation")
    return Space((), vocab=len(images.classes), id="labels")


def check_rdm(work: Workspace, fitted: Space | None = None) -> None:
    """Refuse to train a generator for hours on other representations, or images, than the RDM of the same run.

    Args:
        work: the experiment.
        fitted: the space of z; None: compared are spaces as far as they are known before images are encoded.
    """
    stage = work.run.rdm
    if not stage.is_trained or work.experiment.require_generator().condition != "representation":
        return
    facts = stage.part(weights=False).facts
    generated, needed = facts.data, fitted or work.raw_representation.space
    if generated != fitted if fitted else not work.generates(generated):
        raise UserError(
            f"{stage.checkpoint} generates representations of {generated and generated.id}, but the generator would be "
            f"trained on those of {needed.id}: train the RDM again (tools/train_rdm.py --overwrite) or choose another "
            f"run="
        )
    if fitted is None:
        _check_part(work, stage, "the RDM", "tools/train_rdm.py", work.experiment.rdm.train)


def check_representation(work: Workspace) -> None:
    """Refuse an encoder that was trained in the run but on other images, and a projection that is too wide."""
    stage, raw = work.run.encoder, work.raw_representation
    if work.experiment.encoder.weights is None:
        generator = work.experiment.generator
        train = generator.train if raw.encoder.joint and generator is not None else work.experiment.encoder.train
        _check_part(work, stage, "the encoder", work.encoder_tool, train)
    raw.transform.check(len(work.images.train), raw.encoder.width)


def _check_part(work: Workspace, stage: StageFolder, part: str, tool: str, train: TrainConfig) -> None:
    """Refuse a part of the run that was trained on other images; warn of one whose training is not finished."""
    saved = stage.part(weights=False)
    trained, now = saved.facts.fingerprint, work.images.train.fingerprint
    # With early stopping the model of the best step is the finished one.
    if saved.facts.step < saved.facts.steps and train.patience is None:
        warn(
            f"{stage.checkpoint} is at step {saved.facts.step} of {saved.facts.steps}: what is trained with it will "
            f"not fit {part} once that is finished ({tool} --resume)"
        )
    if trained not in ("", now):
        raise UserError(
            f"{stage.checkpoint} was trained on other images, or on other crops of them, than the configuration names: "
            f"give the data section that {part} was trained with, train it again ({tool} --overwrite), or choose "
            f"another run="
        )
