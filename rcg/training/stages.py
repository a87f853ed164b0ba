"""The four trainings of an experiment: encoder, autoencoder, RDM, generator. Each builds on what those before left."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch

from rcg.config import Config, Experiment, ModelConfig, TrainableAutoencoderConfig, TrainConfig, training_identity
from rcg.core.checkpoint import Facts
from rcg.core.console import say
from rcg.core.contracts import Denoiser, Encoder, Space, Task, TrainableAutoencoder
from rcg.core.errors import UserError
from rcg.core.registry import ENCODERS, GENERATORS, NETWORKS
from rcg.data.images import Images
from rcg.data.loading import StepKeys
from rcg.diffusion.alignment import AlignmentHead
from rcg.diffusion.model import build
from rcg.distributed.batch_norm import synchronized
from rcg.encoding.autoencoder import build_autoencoder, check_space, load_weights
from rcg.encoding.encoder import build_encoder
from rcg.encoding.run_folder import Mode, RunFolder, StageFolder
from rcg.encoding.workspace import Workspace
from rcg.training import conditioning
from rcg.training.loop import train
from rcg.training.tasks.autoencoder import AutoencoderTask, build_comparisons
from rcg.training.tasks.encoder import EncoderTask
from rcg.training.tasks.generator import ConditionedImages, GeneratorTask
from rcg.training.tasks.rdm import RDMTask


class Stage(ABC):
    """One training: what decides its result, what it refuses, and the task that the loop trains.

    Attributes:
        name: its key in `STAGES`, and for people.
        next_tool: the command that comes after it.
        shardable: whether its module can be sharded over processes (FSDP).
    """

    name: ClassVar[str]
    next_tool: ClassVar[str]
    shardable: ClassVar[bool] = False

    @abstractmethod
    def folder(self, experiment: Experiment) -> StageFolder:
        """Return the stage's folder in the run."""

    @abstractmethod
    def train_config(self, experiment: Experiment) -> TrainConfig:
        """Return how the stage is trained; raises `UserError` where there is nothing to train."""

    @abstractmethod
    def identity(self, experiment: Experiment) -> dict[str, Any]:
        """Return what of an experiment a resumed training has to find unchanged, as nested settings."""

    @abstractmethod
    def check(self, work: Workspace, mode: Mode) -> None:
        """Raise `UserError` for everything that can be refused before the stage's folder is touched."""

    @abstractmethod
    def task(self, work: Workspace) -> Task:
        """Build the task, its initial weights seeded."""


def run_stage(stage: Stage, work: Workspace, mode: Mode) -> None:
    """Train one stage of an experiment; nothing is written into its folder before all checks have passed.

    Args:
        stage: which training.
        work: the experiment, with an accelerator that was launched for this training.
        mode: what to do with a folder that is not empty.

    Raises:
        UserError: something is missing, or does not fit, or the folder belongs to another experiment.
    """
    experiment = work.experiment
    folder, config = stage.folder(experiment), stage.train_config(experiment)
    StepKeys.check(config, work.accelerator.num_processes)
    folder.check(stage.identity, experiment, mode)
    stage.check(work, mode)
    task = stage.task(work)
    task.modules = {name: synchronized(module, work.accelerator.device) for name, module in task.modules.items()}
    folder.claim(experiment, mode, work.accelerator)
    progress = train(task, config, folder, work.accelerator, experiment.seed, experiment.data.num_workers)
    if progress.step >= config.steps:
        say(f"{folder.checkpoint}: step {progress.step}, {progress.seconds:.0f} s. Next: {stage.next_tool}")


class EncoderStage(Stage):
    """Contrastive pre-training of the experiment's encoder on its unlabeled images."""

    name, next_tool = "encoder", "tools/train_rdm.py"

    def folder(self, experiment: Experiment) -> StageFolder:
        """Return the stage's folder in the run."""
        return RunFolder(experiment.run).encoder

    def train_config(self, experiment: Experiment) -> TrainConfig:
        """Return how the encoder is trained."""
        config = experiment.encoder
        if config.weights is not None:
            raise UserError(
                f"encoder.weights is {config.weights!r}, so there is nothing to train: go on with tools/train_rdm.py"
            )
        return config.train

    def identity(self, experiment: Experiment) -> dict[str, Any]:
        """Return what decides the encoder."""
        return _identity(experiment, "data", "encoder")

    def check(self, work: Workspace, mode: Mode) -> None:
        """Refuse an encoder that cannot be trained."""
        name = work.experiment.encoder.name
        if not ENCODERS.get(name).trainable:
            raise UserError(
                f"encoder.name is {name!r}, which is used frozen and cannot be pre-trained here: "
                f"set encoder.name=moco_v3, or go straight to tools/train_rdm.py"
            )

    def task(self, work: Workspace) -> Task:
        """Build the contrastive task."""
        images, validation = work.images
        work.seed_weights("encoder")
        encoder = build_encoder(work.experiment.encoder, work.image_size)
        return EncoderTask(encoder, images, validation, work.experiment.encoder.train)


class AutoencoderStage(Stage):
    """Training of the generator's autoencoder on the experiment's images."""

    name, next_tool = "autoencoder", "tools/train_pixel.py"

    def folder(self, experiment: Experiment) -> StageFolder:
        """Return the stage's folder in the run."""
        return RunFolder(experiment.run).autoencoder

    def train_config(self, experiment: Experiment) -> TrainConfig:
        """Return how the autoencoder is trained."""
        return self._config(experiment).train

    def identity(self, experiment: Experiment) -> dict[str, Any]:
        """Return what decides the autoencoder."""
        config = self._config(experiment)
        sections = ("data", "encoder") if config.train.perceptual == "encoder" else ("data",)
        return _identity(experiment, *sections) | {"generator": {"autoencoder": training_identity(config)}}

    def check(self, work: Workspace, mode: Mode) -> None:
        """Refuse a perceptual loss without an encoder, and to start from weights that are about to be deleted."""
        config = self._config(work.experiment).train
        self._perceptual_encoder(work)
        folder = self.folder(work.experiment).path
        start = config.init_from and Path(config.init_from).resolve()
        if mode == Mode.OVERWRITE and start and start.is_relative_to(folder.resolve()):
            raise UserError(
                f"generator.autoencoder.train.init_from is {config.init_from}, in the folder that --overwrite "
                f"replaces: copy the file to another place first"
            )

    def task(self, work: Workspace) -> Task:
        """Build the reconstruction task."""
        config, encoder = self._config(work.experiment), self._perceptual_encoder(work)
        if config.train.inception is None:
            instead = "encoder_fd is, in the encoder's space" if encoder else "PSNR and SSIM are"
            say(f"rFID is not reported without generator.autoencoder.train.inception=FILE; {instead}")
        images, validation = work.images
        work.seed_weights("tokenizer")  # what autoencoders were called first: seeds keep their meaning
        autoencoder = build_autoencoder(config, work.image_size)
        assert isinstance(autoencoder, TrainableAutoencoder)
        if config.train.init_from:
            load_weights(autoencoder, Path(config.train.init_from))
        if config.train.decoder_only:
            autoencoder.train_decoder_only()
        comparisons = build_comparisons(config.train, encoder, work.accelerator.device)
        facts = Facts(image_size=work.image_size, fingerprint=images.fingerprint)
        return AutoencoderTask(autoencoder, images, validation, config.train, comparisons, facts)

    def _config(self, experiment: Experiment) -> TrainableAutoencoderConfig:
        config = experiment.require_generator().autoencoder
        if not isinstance(config, TrainableAutoencoderConfig):
            raise UserError(
                f"generator.autoencoder.name is {config.name!r}, which has nothing to train: go on with "
                f"tools/train_pixel.py, or choose vqgan, vq or kl"
            )
        if config.weights is not None:
            raise UserError(
                f"generator.autoencoder.weights is {config.weights!r}, so there is nothing to train: go on with "
                f"tools/train_pixel.py"
            )
        return config

    def _perceptual_encoder(self, work: Workspace) -> Encoder | None:
        """Return the experiment's encoder if the perceptual loss compares its features, else None."""
        if self._config(work.experiment).train.perceptual != "encoder":
            return None
        try:
            return work.raw_representation.encoder
        except UserError as error:
            raise UserError(f"{error}; or set generator.autoencoder.train.perceptual to vgg or none") from None


class RDMStage(Stage):
    """Training of the representation diffusion model (RDM) on representations that are computed once."""

    name, next_tool, shardable = "rdm", "tools/train_pixel.py", True

    def folder(self, experiment: Experiment) -> StageFolder:
        """Return the stage's folder in the run."""
        return RunFolder(experiment.run).rdm

    def train_config(self, experiment: Experiment) -> TrainConfig:
        """Return how the RDM is trained."""
        return experiment.rdm.train

    def identity(self, experiment: Experiment) -> dict[str, Any]:
        """Return what decides the RDM."""
        return _identity(experiment, "data", "encoder", "projection", "normalize", "rdm")

    def check(self, work: Workspace, mode: Mode) -> None:
        """Refuse an encoder that is not there, and conditions that are not."""
        config, condition = work.experiment.rdm, conditioning.rdm_conditioning(work.experiment.rdm, *work.images)
        _check_model(config, NETWORKS.get(config.name), work.raw_representation.space, condition.space)

    def task(self, work: Workspace) -> Task:
        """Build the task of modeling z."""
        config, (images, validation) = work.experiment.rdm, work.images
        z, validation_z = work.z("train"), work.z("validation")
        condition = conditioning.rdm_conditioning(config, images, validation)
        work.seed_weights("rdm")
        model = build(config, NETWORKS.get(config.name), work.representation.space, condition.space)
        return RDMTask(model, z, validation_z, condition.train, condition.validation_labels, _facts(images))


class GeneratorStage(Stage):
    """Training of the pixel generator, conditioned on representations, labels, clusters or nothing."""

    name, next_tool, shardable = "generator", "tools/sample.py", True

    def folder(self, experiment: Experiment) -> StageFolder:
        """Return the stage's folder in the run."""
        return RunFolder(experiment.run).stage_folder(experiment.require_generator().folder_name)

    def train_config(self, experiment: Experiment) -> TrainConfig:
        """Return how the generator is trained."""
        return experiment.require_generator().train

    def identity(self, experiment: Experiment) -> dict[str, Any]:
        """Return what decides the generator."""
        config = experiment.require_generator()
        sections = ["data", "generator"]
        if config.condition in conditioning.FROM_REPRESENTATIONS:
            sections += ["encoder", "projection", "normalize"]
        elif config.align is not None:
            sections.append("encoder")
        if config.condition == "cluster":
            sections.append("clusters")
        return _identity(experiment, *sections)

    def check(self, work: Workspace, mode: Mode) -> None:
        """Refuse neighbors that are missing or do not fit."""
        config, folder = work.experiment.require_generator(), self.folder(work.experiment)
        if config.condition in conditioning.FROM_REPRESENTATIONS and not work.raw_representation.transform.needs_fit:
            conditioning.check_rdm(work)  # else the space is known only once the transform is fitted
        space = folder.part(weights=False).facts.data if folder.is_trained and mode != Mode.OVERWRITE else None
        if space is not None:
            check_space(work.autoencoder, space, str(folder.checkpoint))
        _patch_space(work)
        cond: Space | None = None
        if config.condition == "class":
            cond = conditioning.label_space(work.images.train)
        elif config.condition == "cluster":
            cond = Space((), vocab=1, id="clusters")  # their number does not matter here
        elif config.condition == "representation":
            cond = work.raw_representation.space
        _check_model(config, GENERATORS.get(config.name), work.autoencoder.space, cond)

    def task(self, work: Workspace) -> Task:
        """Build the task of generating images."""
        config, (images, validation) = work.experiment.require_generator(), work.images
        condition = conditioning.generator_conditioning(work)
        patches = _patch_space(work)
        # Alignment needs the images themselves, for the encoder's patch tokens.
        posteriors = None if patches is not None else work.posteriors()
        views = work.experiment.data.cached_views
        train_set = ConditionedImages(images, views, condition.z, posteriors, condition.labels)
        validation_set = ConditionedImages(validation, 1, condition.validation_z, labels=condition.validation_labels)
        work.seed_weights("generator")
        model = build(config, GENERATORS.get(config.name), work.autoencoder.space, condition.space)
        head, encoder = None, None
        if patches is not None and config.align is not None:
            head = AlignmentHead(config.align, model.network.width, patches)
            encoder = work.encoder.to(work.accelerator.device)
        facts = _facts(images).model_copy(
            update={"image_size": work.image_size, "cluster_counts": condition.cluster_counts}
        )
        autoencoder = work.autoencoder.to(work.accelerator.device)
        return GeneratorTask(model, autoencoder, train_set, validation_set, facts, head, encoder)


def _check_model(config: ModelConfig, network: type[Denoiser], data: Space, cond: Space | None) -> None:
    """Refuse what the network, the process or the sampler cannot do, before hours of encoding."""
    with torch.device("meta"):
        model = build(config, network, data, cond)
    config.sampler.check(model.process)


def _identity(experiment: Experiment, *sections: str) -> dict[str, Any]:
    """Return what a resumed training has to find unchanged: the seed, and all but the RUNTIME fields of some sections.

    An encoder's ORIGIN is included: other weights are another experiment.
    """
    values: dict[str, Any] = {"seed": experiment.seed}
    for key in sections:
        section = getattr(experiment, key)
        values[key] = training_identity(section) if isinstance(section, Config) else section
    return values


def _facts(images: Images) -> Facts:
    return Facts(classes=tuple(images.classes), fingerprint=images.fingerprint)


def _patch_space(work: Workspace) -> Space | None:
    """Return the space `(rows, columns, D)` of the encoder's patch tokens that a generator is aligned with, or None.

    Raises:
        UserError: the encoder has none.
    """
    if work.experiment.require_generator().align is None:
        return None
    encoder, name = work.raw_representation.encoder, work.experiment.encoder.name
    if encoder.grid is None:
        raise UserError(
            f"generator.align needs an encoder with patch tokens, and {name} has none: "
            f"leave generator.align out, or choose a vision transformer"
        )
    blank = torch.zeros(1, 3, work.image_size, work.image_size, device=work.accelerator.device)
    with torch.no_grad():
        tokens = encoder.to(work.accelerator.device).patch_features(blank)
    return Space((*encoder.grid, tokens.shape[-1]), id=f"patches of {name}")


STAGES: dict[str, Stage] = {
    stage.name: stage for stage in (EncoderStage(), AutoencoderStage(), RDMStage(), GeneratorStage())
}
"""The trainings by name, in their order."""
