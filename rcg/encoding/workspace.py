"""An experiment opened for work: its run, its images, its frozen networks, and what they computed of the images."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any, NamedTuple, get_args

import torch
from accelerate import Accelerator
from torch import Tensor

from rcg.config import (
    Experiment,
    GeneratorConfig,
    RepresentationAutoencoderConfig,
    differences,
    identity,
    load_encoder_section,
    resolve_epochs,
    trainings,
)
from rcg.config.experiment import Normalize
from rcg.core import checkpoint
from rcg.core.checkpoint import Facts, Part
from rcg.core.console import say
from rcg.core.contracts import Autoencoder, Encoder, Space
from rcg.core.errors import UserError
from rcg.core.registry import ENCODERS
from rcg.core.rng import fold_seed
from rcg.data.images import Images, Split, load_images
from rcg.data.store import read_if_whole
from rcg.data.views import ShardedViews
from rcg.encoding import clusters
from rcg.encoding.autoencoder import open_autoencoder
from rcg.encoding.cache import ViewCache, latent_cache, pack, representation_cache, unpack
from rcg.encoding.clusters import Clusters
from rcg.encoding.encoder import encoder_id, encoder_name, encoder_part, load_encoder, open_encoder
from rcg.encoding.lock import run_lock
from rcg.encoding.representation import Representation
from rcg.encoding.run_folder import RunFolder, StageFolder
from rcg.encoding.transform import Transform, transform_part

MAX_FITTED = 200_000
"""Most representations that a projection or a normalizer is fitted to."""


class RealData(NamedTuple):
    """Images of both splits, and z of their first views: what generated representations are compared with."""

    train: Images
    train_z: Tensor  # (N, D)
    validation: Images
    validation_z: Tensor  # (M, D)


class Workspace:
    """An experiment opened for work; each neighbor is opened once, when somebody asks for it.

    Attributes:
        experiment: the configuration.
        accelerator: the processes, and the device.
        run: the folder of the run.
        goes_on: whether the training goes on from a state: what it started with need not be there any more.
    """

    goes_on = False

    def __init__(self, experiment: Experiment, accelerator: Accelerator) -> None:
        self.experiment, self.accelerator = experiment, accelerator
        self.run = RunFolder(experiment.run)
        self._raw: dict[str, ShardedViews] = {}

    def with_generator(self, generator: GeneratorConfig) -> Workspace:
        """Return a workspace of the same experiment with another generator."""
        return Workspace(self.experiment.model_copy(update={"generator": generator}), self.accelerator)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.experiment.data.image_size

    def resolve_epochs(self) -> Experiment:
        """Let all trainings of the experiment know their steps, and return it; raises `UserError` without images."""
        if any(config.epochs is not None for config in trainings(self.experiment)):
            self.experiment = resolve_epochs(self.experiment, len(self.images.train))
        return self.experiment

    def generates(self, space: Space | None) -> bool:
        """Whether `space` is that of z, as far as this is known before images are encoded."""
        z = self.raw_representation.space
        if space is None or not self.raw_representation.transform.needs_fit:
            return space == z
        # What is fitted to representations is in the second part of the name.
        return (space.shape, space.id.partition("/")[0]) == (z.shape, z.id.partition("/")[0])

    def seed_weights(self, part: str) -> None:
        """Seed the initial weights of a part, so that they depend on nothing that was drawn before."""
        torch.manual_seed(fold_seed(self.experiment.seed, "weights", part))

    @cached_property
    def images(self) -> Split:
        """The data set; the first process opens it alone at first, for it may have to download or check files."""
        with self.accelerator.main_process_first():
            return load_images(self.experiment.data)

    @cached_property
    def encoder(self) -> Encoder:
        """The frozen encoder: the one trained in the run, or the one whose weights the experiment names.

        Raises:
            UserError: the encoder is not trained yet, or the trained one is not the one described.
        """
        config = self.experiment.encoder
        if config.weights is not None:
            return open_encoder(config, self.image_size, self.experiment.seed)
        stage = self.run.encoder
        if not stage.is_trained:
            raise UserError(
                f"{stage.path} holds no trained encoder and encoder.weights names none: run {self.encoder_tool} with "
                f"the same configuration first, or set encoder.weights"
            )
        encoder = load_encoder(stage.checkpoint)
        changed = list(differences(identity(encoder.config), identity(config), "encoder"))
        if changed:
            raise UserError(
                f"{stage.checkpoint} holds another encoder ({'; '.join(changed)}): if it was trained with overrides, "
                f"repeat them, or give {stage.config} instead of the file; or train it again, or choose another run="
            )
        return encoder

    @cached_property
    def perceptual_encoder(self) -> Encoder | None:
        """The frozen encoder whose features the generator's perceptual loss compares; None without that loss.

        Raises:
            UserError: there is no such encoder.
        """
        config = self.experiment.require_generator().perceptual
        if config is None:
            return None
        if config.encoder == "own":
            return self.encoder
        section, image_size = load_encoder_section(config.encoder)
        return open_encoder(section, image_size or self.image_size)

    @property
    def perceptual_name(self) -> str:
        """The name of that encoder as `name:digest`; empty without one."""
        encoder = self.perceptual_encoder
        return "" if encoder is None else encoder_name(encoder, encoder_id(encoder))

    @cached_property
    def latent_encoder(self) -> Encoder | None:
        """The frozen encoder whose patch features are the latents of the generator's autoencoder; None: it has its own.

        Raises:
            UserError: the encoder is not trained yet, or it is another one than the experiment's and names no weights.
        """
        config = self.experiment.require_generator().autoencoder
        if not isinstance(config, RepresentationAutoencoderConfig) or config.encoder is None:
            return None
        if config.encoder.model_dump() == self.experiment.encoder.model_dump():
            return self.encoder
        if config.encoder.weights is None:
            raise UserError(
                "generator.autoencoder.encoder is another encoder than the experiment's and names no weights: set "
                "generator.autoencoder.encoder.weights, or set generator.autoencoder.encoder to null"
            )
        return open_encoder(config.encoder, self.image_size, self.experiment.seed)

    @property
    def encoder_tool(self) -> str:
        """The command that trains the encoder."""
        if ENCODERS.get(self.experiment.encoder.name).joint:
            return "tools/train_pixel.py"
        return "tools/train_encoder.py"

    @property
    def joint_transform(self) -> Transform:
        """What an encoder that is trained together with a generator gives to it: z, or what z is fitted to later."""
        needs_fit = Transform(self.experiment.normalize, self.experiment.projection).needs_fit
        return Transform("none" if needs_fit else self.experiment.normalize)

    @property
    def is_joint(self) -> bool:
        """Whether the experiment's generator is trained together with the encoder.

        Another generator of the same run is trained on that encoder as it then is.
        """
        config, generator = self.experiment.encoder, self.experiment.require_generator()
        if not ENCODERS.get(config.name).joint or config.weights is not None or generator.condition != "representation":
            return False
        saved = self.run.encoder.experiment()
        if saved is None or saved.generator is None:
            return not self.run.encoder.is_trained
        return (saved.encoder.name, saved.generator.folder_name) == (config.name, generator.folder_name)

    @cached_property
    def raw_representation(self) -> Representation:
        """The map from images to raw representations; `representation` fits its transform, in place."""
        transform = Transform(self.experiment.normalize, self.experiment.projection)
        return Representation(self.encoder, transform)

    @cached_property
    def representation(self) -> Representation:
        """The map from images to z, its transform fitted to the training images if it has to be."""
        representation = self.raw_representation
        if representation.transform.needs_fit:
            self._fit(representation, self._representations("train"))
        return representation

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """The frozen autoencoder of the generator.

        Raises:
            UserError: it is not trained yet, or the trained one is not the one described, or its file does not fit.
        """
        config = self.experiment.require_generator().autoencoder
        return open_autoencoder(config, self.image_size, self.run.autoencoder.checkpoint)

    @property
    def generator_folder(self) -> StageFolder:
        """The folder of the experiment's generator."""
        return self.run.stage_folder(self.experiment.require_generator().folder_name)

    def z(self, split: str) -> ShardedViews:
        """Return z of the images of a split, `train` in all cached views, `validation` in the first.

        They are computed once, on all processes, and cached in the run.
        """
        raw = self._representations(split)
        return raw.map(self.representation.transform)

    @property
    def has_representations(self) -> bool:
        """Whether the representations of both splits are cached; raises `UserError` where there is no encoder."""
        return all(self._cache(split).is_complete for split in ("train", "validation"))

    def encoded_by(self, judge: Representation) -> tuple[ShardedViews, ShardedViews]:
        """Return what another encoder makes of both splits, of their first views alone; it is cached in the run."""
        judge.encoder.to(self.accelerator.device)
        caches = [
            representation_cache(images, judge, 1, self.run.cache, f"judged-{split}")
            for split, images in zip(("train", "validation"), self.images)
        ]
        train, validation = (cache.fill(judge.encode, self.accelerator) for cache in caches)
        return train, validation

    def latent_cache(self) -> ViewCache | None:
        """Return the cache, complete or not, of the training images' latents; None for an autoencoder without weights.

        Raises:
            UserError: there is no autoencoder yet.
        """
        if not self.autoencoder.has_weights:
            return None
        views = self.experiment.data.cached_views
        return latent_cache(self.images.train, self.autoencoder, views, self.run.cache, "train")

    def posteriors(self) -> ShardedViews | None:
        """Return the training images' posteriors; None where tools/cache.py has not computed all of them."""
        cache = self.latent_cache()
        if cache is None or not cache.is_complete:
            return None
        return cache.fill(partial(pack, self.autoencoder), self.accelerator).map(unpack)

    @property
    def cluster_count(self) -> int:
        """The number of clusters; raises `UserError` if there are fewer training images."""
        images = self.images.train
        number = self.experiment.clusters or clusters.default_number(len(images), len(images.classes))
        if number > len(images):
            raise UserError(f"clusters is {number}, but there are {len(images)} training images: choose fewer")
        return number

    @property
    def cluster_space(self) -> Space:
        """The space of clusters, as far as it is known before they are found."""
        return Space((), vocab=self.cluster_count, id="clusters")

    def clusters(self) -> Clusters:
        """Return the clusters of the training images in all cached views, fitted once and kept in the run.

        Raises:
            UserError: there are fewer training images than clusters.
        """
        number, z = self.cluster_count, self.z("train")
        facts = {
            "representation": self.representation.space.id,
            "images": self.images.train.fingerprint,
            "views": z.views,
            "clusters": number,
            "seed": self.experiment.seed,
        }
        path = self.run.fitted("clusters", facts)
        if self.accelerator.is_main_process and read_if_whole(path) is None:
            fitted = clusters.fit((one_view(z, view) for view in range(z.views)), number, self.experiment.seed)
            checkpoint.save_tensors(path, fitted._asdict(), facts)
        self.accelerator.wait_for_everyone()
        width = self.representation.space.shape[0]
        return clusters.load(path, (number, width), (len(self.images.train), z.views))

    def real_data(self, space: Space) -> RealData:
        """Return the images of both splits with their z.

        Raises:
            UserError: these are not the representations of `space`, which an RDM generates.
        """
        if not self._has_space(space):
            raise UserError(
                f"{self.run.rdm.path} generates representations of {space.id}, but the experiment's are those of "
                f"{self.raw_representation.space.id}: give the configuration that the RDM was trained with"
            )
        train, validation = self.z("train"), self.z("validation")
        return RealData(self.images.train, first_views(train), self.images.validation, first_views(validation))

    def check_condition(self, space: Space | None) -> None:
        """Raise `UserError` if a generator conditioned on `space` was trained on other representations than these."""
        if space is not None and not self._has_space(space):
            raise UserError(
                f"the generator is conditioned on representations of {space.id}, but those of {self.run.path} are now "
                f"of {self.raw_representation.space.id}: train the generator again"
            )

    def _has_space(self, space: Space) -> bool:
        """Whether `space` is that of z; images are encoded only if it can be, to fit what has to be fitted."""
        return self.generates(space) and self.representation.space == space

    def _representations(self, split: str) -> ShardedViews:
        """Return raw representations of a split, computed on all processes where they are not cached."""
        if split not in self._raw:
            cache = self._cache(split)
            # Only the encoder moves: the transform stays on the CPU, where rows are read.
            self.raw_representation.encoder.to(self.accelerator.device)
            self._raw[split] = cache.fill(self.raw_representation.encode, self.accelerator)
        return self._raw[split]

    def _cache(self, split: str) -> ViewCache:
        """Return the cache, complete or not, of raw representations of a split."""
        images: Images = getattr(self.images, split)
        views = self.experiment.data.cached_views if split == "train" else 1
        return representation_cache(images, self.raw_representation, views, self.run.cache, split)

    def _fit(self, representation: Representation, rep: ShardedViews) -> None:
        """Fit the transform on one process and keep it in the run, under a name that says what it was fitted to."""
        facts: dict[str, Any] = {
            "encoder": representation.encoder_id,
            "images": self.images.train.fingerprint,
            "views": rep.views,
            **self.experiment.model_dump(mode="json", include={"projection", "normalize"}),
        }
        path = self.run.fitted("transform", facts)
        if self.accelerator.is_main_process and read_if_whole(path) is None:
            order = torch.randperm(len(rep), generator=torch.Generator().manual_seed(0))[:MAX_FITTED]
            representation.transform.fit(rep.rows(order, order % rep.views))
            checkpoint.save_tensors(path, representation.transform.state_dict(), facts)
        self.accelerator.wait_for_everyone()
        width = representation.encoder.width
        representation.transform.load(checkpoint.load_tensors(path)[0], width, str(path))


def fill_caches(work: Workspace) -> None:
    """Compute the representations and latents that the trainings of an experiment read, on all processes.

    Raises:
        UserError: a frozen network is missing, or another command writes into the run.
    """
    with run_lock(work.run.path):
        _fill_caches(work)


def _fill_caches(work: Workspace) -> None:
    z, validation_z = work.z("train"), work.z("validation")
    width = work.representation.space.shape[0]
    say(
        f"{work.run.cache}: {len(z)} training images in {z.views} view(s) and {len(validation_z)} validation images, "
        f"{width} features each. Next: tools/train_rdm.py"
    )
    if work.experiment.generator is None:
        return
    try:
        cache = work.latent_cache()
    except UserError as error:
        say(f"latents are not cached yet: {error}")
        return
    if cache is not None:
        autoencoder = work.autoencoder.to(work.accelerator.device)
        latents = cache.fill(partial(pack, autoencoder), work.accelerator)
        shape = "x".join(map(str, autoencoder.space.shape))
        say(f"{cache.store.folder}: {len(latents)} training images in {latents.views} view(s), latents {shape}")


def first_views(z: ShardedViews) -> Tensor:
    """Return z `(N, D)` of the images as they are."""
    return one_view(z, 0)


def one_view(z: ShardedViews, view: int) -> Tensor:
    """Return z `(N, D)` of the images in a view."""
    positions = torch.arange(len(z))
    return z.rows(positions, torch.full_like(positions, view))


def representation_parts(run: RunFolder, generator: str, space: Space | None) -> dict[str, Part]:
    """Return the encoder and the transform of a run as parts: all that turns images into z, ready to travel.

    Args:
        run: the folder.
        generator: whose configuration counts.
        space: the space of z, which names what the transform learned; None: no model there works in it.

    Returns:
        Parts by kind; none where the run does not say how its representations were made. A converted run has no
            configuration: the name of the space says which transform it was.

    Raises:
        UserError: the transform was fitted, and what it learned is not there any more.
    """
    experiment = run.stage_folder(generator).experiment()
    if experiment is None:
        return _converted_parts(run, space)
    config, size = experiment.encoder, experiment.data.image_size
    if config.weights is not None:
        encoder = open_encoder(config, size, experiment.seed)
    elif run.encoder.is_trained:
        encoder = load_encoder(run.encoder.checkpoint)
    else:
        return {}
    transform = Transform(experiment.normalize, experiment.projection)
    if space is not None and space.id.endswith("/none"):
        transform = Transform("none")  # of a generator that learned from what z is fitted to, without an RDM
    if transform.needs_fit:
        if space is None:
            return {}
        _find_fitted(transform, run, encoder.width, space)
    part = run.encoder.part() if config.weights is None else encoder_part(encoder, Facts(image_size=size))
    return {"encoder": part, "transform": transform_part(transform)}


def _converted_parts(run: RunFolder, space: Space | None) -> dict[str, Part]:
    """Return the encoder of a run without a configuration, and the transform if z is what leads to `space`."""
    if not run.encoder.is_trained:
        return {}
    encoder = run.encoder.part()
    normalizer = "" if space is None else space.id.partition("/")[2].partition("-")[0]
    if space is None or normalizer not in get_args(Normalize):
        return {"encoder": encoder}
    transform = Transform(normalizer)
    if transform.needs_fit:
        _find_fitted(transform, run, space.shape[0], space)
    return {"encoder": encoder, "transform": transform_part(transform)}


def _find_fitted(transform: Transform, run: RunFolder, width: int, space: Space) -> None:
    """Load what a transform of representations of `width` learned where it led to `space`."""
    wanted = space.id.partition("/")[2]
    kind = transform_part(transform).config
    for path in sorted(run.fitted_folder.glob("transform-*.safetensors")):
        tensors, facts = checkpoint.load_tensors(path)
        if {key: facts.get(key) for key in kind} == kind:
            transform.load(tensors, width, str(path))
            if transform.id == wanted:
                return
    raise UserError(
        f"{run.fitted_folder} does not hold the transform {wanted} that the models were trained with: run "
        f"tools/cache.py to fit it again"
    )
