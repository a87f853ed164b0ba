"""The four trainings of an experiment: encoder, autoencoder, RDM, generator. Each builds on what those before left."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from rcg.config import (
    Config,
    Experiment,
    ModelConfig,
    RepresentationAutoencoderConfig,
    TrainableAutoencoderConfig,
    TrainConfig,
    training_identity,
)
from rcg.core.checkpoint import Facts
from rcg.core.console import log_to, say, warn
from rcg.core.contracts import Encoder, Space, Task, TrainableAutoencoder
from rcg.core.errors import UserError
from rcg.core.registry import ENCODERS, GENERATORS, NETWORKS
from rcg.data.loading import StepKeys
from rcg.diffusion.alignment import AlignedModel, AlignmentHead
from rcg.diffusion.joint import JointModel
from rcg.diffusion.model import GenerativeModel, build
from rcg.distributed.batch_norm import synchronized
from rcg.encoding.autoencoder import build_autoencoder
from rcg.encoding.encoder import build_encoder
from rcg.encoding.lock import run_lock
from rcg.encoding.representation import open_judge
from rcg.encoding.run_folder import Mode, RunFolder, StageFolder
from rcg.encoding.workspace import Workspace
from rcg.training import conditioning
from rcg.training.clock import LEAST_JUDGED, Clock, judged_samples, judged_space
from rcg.training.initial import LEAST, Initial
from rcg.training.loop import learning_rate, train
from rcg.training.record import Start, program, record, trained_facts
from rcg.training.tasks.autoencoder import AutoencoderTask, build_comparisons, measure_latents, trained_modules
from rcg.training.tasks.encoder import EncoderTask
from rcg.training.tasks.generator import ConditionedImages, GeneratorTask, JointTask
from rcg.training.tasks.perceptual import PerceptualLoss
from rcg.training.tasks.rdm import RDMTask


class Stage(ABC):
    """One training: what decides its result, what it refuses, and the task that the loop trains.

    Attributes:
        name: its key in `STAGES`, and for people.
        shardable: whether its module can be sharded over processes (FSDP).
        encodes: whether it learns from what frozen networks make of the images, which takes long the first time.
    """

    name: ClassVar[str]
    shardable: ClassVar[bool] = False
    encodes: ClassVar[bool] = False

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
    def next_tool(self, work: Workspace) -> str:
        """Return the command that comes after it."""

    @abstractmethod
    def check(self, work: Workspace, mode: Mode) -> None:
        """Raise `UserError` for everything that can be refused before the stage's folder is touched."""

    @abstractmethod
    def outline(self, work: Workspace) -> dict[str, nn.Module]:
        """Build what is trained without memory and without encoding images, for its sizes and for what it refuses."""

    @abstractmethod
    def task(self, work: Workspace) -> Task:
        """Build the task, its initial weights seeded."""

    def claimed(self, work: Workspace) -> list[StageFolder]:
        """Return the folders that the training writes into; by default its own."""
        return [self.folder(work.experiment)]

    def changes(self, work: Workspace, trained: Facts) -> Iterator[str]:
        """Yield in what the neighbors of a half-trained part, other than images, differ from today's; by default none.

        Args:
            work: the experiment; no image is encoded.
            trained: what the part says.
        """
        yield from ()


def run_stage(stage: Stage, work: Workspace, mode: Mode, dry_run: bool = False) -> None:
    """Train one stage of an experiment; nothing is written into its folder before all checks have passed.

    Args:
        stage: which training.
        work: the experiment, with an accelerator that was launched for this training.
        mode: what to do with a folder that is not empty.
        dry_run: make all checks, print the configuration, and train nothing.

    Raises:
        UserError: something is missing, or does not fit, or the folder belongs to another experiment.
    """
    # A dry run reads, and need not wait for the command that writes.
    with nullcontext() if dry_run else run_lock(work.run.path):
        _run_stage(stage, work, mode, dry_run)


def _run_stage(stage: Stage, work: Workspace, mode: Mode, dry_run: bool) -> None:
    stage.train_config(work.experiment)  # refuses what has nothing to train, before images are looked for
    experiment = work.resolve_epochs()
    folder, config = stage.folder(experiment), stage.train_config(experiment)
    StepKeys.check(config, work.accelerator.num_processes)
    folder.check(stage.identity, experiment, mode)
    trained = trained_facts(folder) if mode == Mode.RESUME else None
    work.goes_on = mode == Mode.RESUME and bool(folder.state_files())
    if trained is not None:
        _check_images(folder, trained, work)
    stage.check(work, mode)
    if trained is not None:
        _refuse(folder, list(stage.changes(work, trained)))
        _warn_of_jump(config, folder, trained)
    start = Start.of(config, work.images, stage.outline(work), work.accelerator)
    say(f"{stage.name}: {start}")
    if dry_run:
        if not stage.encodes:
            stage.task(work)
        say(f"{experiment.to_yaml()}nothing was trained or written: {folder.path} is as it was")
        return
    task = stage.task(work)
    facts = task.facts.model_copy(update={"program": program()})
    if trained is not None:
        _refuse(folder, list(_other_spaces(trained, facts)))
    task.facts = facts
    task.modules = {name: synchronized(module, work.accelerator.device) for name, module in task.modules.items()}
    for claimed in stage.claimed(work):
        claimed.claim(experiment, mode, work.accelerator)
    log_to(work.run.log)
    if work.accelerator.is_main_process:
        record(folder, start, facts)
    progress = train(task, config, folder, work.accelerator, experiment.seed, experiment.data.num_workers)
    if progress.step >= config.steps:
        say(f"{folder.checkpoint}: step {progress.step}, {progress.seconds:.0f} s. Next: {stage.next_tool(work)}")


class EncoderStage(Stage):
    """Contrastive pre-training of the experiment's encoder on its unlabeled images."""

    name = "encoder"

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
        if ENCODERS.get(config.name).joint:
            raise UserError(
                f"encoder.name is {config.name!r}, which is trained together with the generator: go on with "
                f"tools/train_pixel.py, then tools/train_rdm.py"
            )
        return config.train

    def identity(self, experiment: Experiment) -> dict[str, Any]:
        """Return what decides the encoder."""
        return _identity(experiment, "data", "encoder")

    def next_tool(self, work: Workspace) -> str:
        """Return the command that trains the RDM."""
        return "tools/train_rdm.py"

    def check(self, work: Workspace, mode: Mode) -> None:
        """Refuse an encoder that cannot be trained."""
        name = work.experiment.encoder.name
        if not ENCODERS.get(name).trainable:
            raise UserError(
                f"encoder.name is {name!r}, which is used frozen and cannot be pre-trained here: "
                f"set encoder.name=moco_v3, or go straight to tools/train_rdm.py"
            )
        images, validation = work.images
        if work.experiment.encoder.train.patience is not None and images.labels is None and len(validation) < 2:
            raise UserError(
                f"encoder.train.patience needs labels or two images for validation, but {work.experiment.data.name} "
                f"has neither: leave it out"
            )
        self._initial(work).check(work.experiment.encoder.model_dump(mode="json"), _overwritten(self, work, mode))

    def outline(self, work: Workspace) -> dict[str, nn.Module]:
        """Build the encoder without memory."""
        with torch.device("meta"):
            encoder = build_encoder(work.experiment.encoder, work.image_size)
        self._load(work, encoder)
        return {"encoder": encoder}

    def task(self, work: Workspace) -> EncoderTask:
        """Build the contrastive task."""
        config, (images, validation) = work.experiment.encoder, work.images
        work.seed_weights("encoder")
        encoder = build_encoder(config, work.image_size)
        self._load(work, encoder)
        return EncoderTask(encoder, images, validation, config.train, self._facts(work))

    def _facts(self, work: Workspace) -> Facts:
        return _facts(work, image_size=work.image_size, classes=())  # an encoder learns nothing of classes

    def _load(self, work: Workspace, encoder: Encoder) -> None:
        section = work.experiment.encoder.model_dump(mode="json")
        self._initial(work).load(encoder, section, self._facts(work), encoder.rename)

    def _initial(self, work: Workspace) -> Initial:
        return _initial(work, "encoder", "encoder", work.experiment.encoder.train)


class AutoencoderStage(Stage):
    """Training of the generator's autoencoder on the experiment's images."""

    name = "autoencoder"

    def folder(self, experiment: Experiment) -> StageFolder:
        """Return the stage's folder in the run."""
        return RunFolder(experiment.run).autoencoder

    def train_config(self, experiment: Experiment) -> TrainConfig:
        """Return how the autoencoder is trained."""
        return self._config(experiment).train

    def identity(self, experiment: Experiment) -> dict[str, Any]:
        """Return what decides the autoencoder."""
        config = self._config(experiment)
        needs_encoder = _needs_encoder(config) or isinstance(config, RepresentationAutoencoderConfig)
        sections = ("data", "encoder") if needs_encoder else ("data",)
        return _identity(experiment, *sections) | {"generator": {"autoencoder": training_identity(config)}}

    def next_tool(self, work: Workspace) -> str:
        """Return the command that trains the generator."""
        return "tools/train_pixel.py"

    def check(self, work: Workspace, mode: Mode) -> None:
        """Refuse losses that lack their encoder, and to start from weights that are about to be deleted."""
        self._encoder(work)
        self._patch_space(work)
        _ = work.latent_encoder  # refuses one that is not there
        config = self._config(work.experiment).model_dump(mode="json")
        self._initial(work).check(config, _overwritten(self, work, mode))

    def outline(self, work: Workspace) -> dict[str, nn.Module]:
        """Build the autoencoder, and the discriminator if there is one, without memory."""
        config = self._config(work.experiment)
        with torch.device("meta"):
            autoencoder = build_autoencoder(config, work.image_size)
        assert isinstance(autoencoder, TrainableAutoencoder)
        self._load(work, autoencoder)
        head = self._head(work, autoencoder)
        with torch.device("meta"):
            return trained_modules(autoencoder, head, config.train, work.image_size)

    def task(self, work: Workspace) -> AutoencoderTask:
        """Build the reconstruction task."""
        config, encoder = self._config(work.experiment), self._encoder(work)
        if config.train.inception is None:
            instead = "encoder_fd is, in the encoder's space" if encoder else "PSNR and SSIM are"
            say(f"rFID is not reported without generator.autoencoder.train.inception=FILE; {instead}")
        images, validation = work.images
        work.seed_weights("tokenizer")  # what autoencoders were called first: seeds keep their meaning
        autoencoder = build_autoencoder(config, work.image_size)
        assert isinstance(autoencoder, TrainableAutoencoder)
        self._load(work, autoencoder)
        if work.latent_encoder is not None:
            autoencoder.adopt(work.latent_encoder)
            standardize: Any = autoencoder.standardize
            mean, std = measure_latents(autoencoder.to(work.accelerator.device), images)
            standardize.load_state_dict({"mean": mean, "std": std})
        if config.train.decoder_only:
            autoencoder.train_decoder_only()
        comparisons = build_comparisons(config.train, encoder, work.accelerator.device)
        facts, head = self._facts(work), self._head(work, autoencoder)
        aligned_with = None if head is None else encoder
        return AutoencoderTask(
            autoencoder, images, validation, config.train, comparisons, facts, head, encoder=aligned_with
        )

    def _facts(self, work: Workspace) -> Facts:
        return _facts(work, image_size=work.image_size, classes=())

    def _load(self, work: Workspace, autoencoder: TrainableAutoencoder) -> None:
        config = self._config(work.experiment)
        # Where the decoder alone learns on, everything has to fit, or the latents would not stay what they are.
        least = 1.0 if config.train.decoder_only else LEAST
        section = config.model_dump(mode="json")
        self._initial(work).load(autoencoder, section, self._facts(work), autoencoder.rename, least)

    def _initial(self, work: Workspace) -> Initial:
        return _initial(work, "autoencoder", "generator.autoencoder", self._config(work.experiment).train)

    def _config(self, experiment: Experiment) -> TrainableAutoencoderConfig:
        config = experiment.require_generator().autoencoder
        if not isinstance(config, TrainableAutoencoderConfig):
            raise UserError(
                f"generator.autoencoder.name is {config.name!r}, which has nothing to train: go on with "
                f"tools/train_pixel.py, or choose vqgan, vq, kl or rae"
            )
        if config.weights is not None:
            raise UserError(
                f"generator.autoencoder.weights is {config.weights!r}, so there is nothing to train: go on with "
                f"tools/train_pixel.py"
            )
        return config

    def _encoder(self, work: Workspace) -> Encoder | None:
        """Return the experiment's encoder if a loss compares its features, else None."""
        config = self._config(work.experiment)
        if not _needs_encoder(config):
            return None
        try:
            return work.raw_representation.encoder
        except UserError as error:
            align = ", and leave out align" if config.train.align else ""
            raise UserError(f"{error}; or set generator.autoencoder.train.perceptual to vgg or none{align}") from None

    def _patch_space(self, work: Workspace) -> Space | None:
        """Return the space of the encoder's patch features that latents are aligned with, None without alignment."""
        if self._config(work.experiment).train.align is None:
            return None
        return _patch_space(work, "generator.autoencoder.train.align")

    def _head(self, work: Workspace, autoencoder: TrainableAutoencoder) -> AlignmentHead | None:
        """Build the head that aligns latents with the encoder's patch features, if that is asked for."""
        align, patches = self._config(work.experiment).train.align, self._patch_space(work)
        return None if align is None or patches is None else AlignmentHead(align, autoencoder.channels, patches)


class RDMStage(Stage):
    """Training of the representation diffusion model (RDM) on representations that are computed once."""

    name, shardable, encodes = "rdm", True, True

    def folder(self, experiment: Experiment) -> StageFolder:
        """Return the stage's folder in the run."""
        return RunFolder(experiment.run).rdm

    def train_config(self, experiment: Experiment) -> TrainConfig:
        """Return how the RDM is trained."""
        return experiment.rdm.train

    def identity(self, experiment: Experiment) -> dict[str, Any]:
        """Return what decides the RDM."""
        clusters = ["clusters"] if experiment.rdm.condition == "cluster" else []
        return _identity(experiment, "data", "encoder", "projection", "normalize", "rdm", *clusters)

    def next_tool(self, work: Workspace) -> str:
        """Return the command that trains a generator, or samples from one that is there."""
        return "tools/sample.py" if work.run.generators() else "tools/train_pixel.py"

    def check(self, work: Workspace, mode: Mode) -> None:
        """Refuse an encoder or a condition that is not there, or does not fit."""
        conditioning.rdm_conditioning(work, fits=False)
        conditioning.check_representation(work)
        _check_estimates(work, work.experiment.rdm)
        self._initial(work).check(work.experiment.rdm.model_dump(mode="json"), _overwritten(self, work, mode))

    def outline(self, work: Workspace) -> dict[str, nn.Module]:
        """Build the model without memory."""
        z, cond = work.raw_representation.space, conditioning.rdm_conditioning(work, fits=False).space
        with torch.device("meta"):
            model = self._build(work, z, cond)
        self._load(work, model)
        work.experiment.rdm.sampler.check(model.process)
        return {"rdm": model}

    def changes(self, work: Workspace, trained: Facts) -> Iterator[str]:
        """Yield another encoder, and another condition."""
        yield from _other_z(work, "it generates", trained.data)
        if work.experiment.rdm.condition != "cluster":  # clusters follow from z
            cond = conditioning.rdm_conditioning(work, fits=False).space
            yield from _other("its condition is", trained.cond, cond)

    def task(self, work: Workspace) -> RDMTask:
        """Build the task of modeling z."""
        z, validation_z = work.z("train"), work.z("validation")
        condition = conditioning.rdm_conditioning(work)
        work.seed_weights("rdm")
        model = self._build(work, work.representation.space, condition.space)
        self._load(work, model)
        facts = _facts(work, cluster_counts=condition.cluster_counts)
        return RDMTask(model, z, validation_z, condition.train, condition.validation_labels, facts)

    def _initial(self, work: Workspace) -> Initial:
        return _initial(work, "rdm", "rdm", work.experiment.rdm.train)

    def _build(self, work: Workspace, z: Space, cond: Space | None) -> GenerativeModel:
        config = work.experiment.rdm
        return build(config, NETWORKS.get(config.name), z, cond)

    def _load(self, work: Workspace, model: GenerativeModel) -> None:
        facts = _facts(work, **model.spaces)
        self._initial(work).load(model, work.experiment.rdm.model_dump(mode="json"), facts)


class GeneratorStage(Stage):
    """Training of the pixel generator, conditioned on representations, labels, clusters or nothing."""

    name, shardable, encodes = "generator", True, True

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
        if config.condition in conditioning.FROM_REPRESENTATIONS or config.joint_representation:
            sections += ["encoder", "projection", "normalize"]
        elif config.align is not None or (config.perceptual is not None and config.perceptual.encoder == "own"):
            sections.append("encoder")
        if config.condition == "cluster":
            sections.append("clusters")
        return _identity(experiment, *sections)

    def next_tool(self, work: Workspace) -> str:
        """Return the command that samples, or trains the RDM on the representations of a new encoder."""
        return "tools/train_rdm.py" if work.is_joint else "tools/sample.py"

    def check(self, work: Workspace, mode: Mode) -> None:
        """Refuse neighbors that are missing or do not fit."""
        config = work.experiment.require_generator()
        if work.is_joint:
            self._check_joint(work, mode)
        elif config.condition in conditioning.FROM_REPRESENTATIONS:
            conditioning.check_representation(work)
            conditioning.check_rdm(work)
        elif config.joint_representation:
            conditioning.check_representation(work)
        self._patch_space(work)
        _ = work.perceptual_encoder
        _check_estimates(work, config)
        self._check_judge(work)
        self._initial(work).check(config.model_dump(mode="json"), _overwritten(self, work, mode))

    def _check_joint(self, work: Workspace, mode: Mode) -> None:
        """Refuse what does not go with an encoder in training."""
        experiment, config, encoder = work.experiment, work.experiment.require_generator(), work.run.encoder
        name = experiment.encoder.name
        if experiment.projection is not None:
            raise UserError(
                f"projection needs an encoder that is there, but {name} is trained together with the generator: leave "
                f"it out"
            )
        if config.align is not None:
            raise UserError(
                f"generator.align needs a frozen encoder with patch tokens, and {name} is trained: leave it out"
            )
        if config.perceptual is not None and config.perceptual.encoder == "own":
            raise UserError(
                f"generator.perceptual needs a frozen encoder, and {name} is trained: name another as "
                f"generator.perceptual.encoder"
            )
        if config.train.snapshot is not None:
            raise UserError(
                f"generator.train.snapshot would keep a generator without the encoder that {name} was at that step: "
                f"leave it out"
            )
        if config.condition_noise and experiment.normalize != "per_sample":
            raise UserError(
                f"generator.condition_noise is {config.condition_noise:g}, which {name} would drown by ever larger "
                f"representations: set it to 0, or normalize to per_sample"
            )
        if mode == Mode.START:
            encoder.check(self.identity, experiment, mode)
        elif mode == Mode.RESUME and encoder.is_trained and not self.folder(experiment).state_files():
            raise UserError(
                f"{encoder.checkpoint} is there, but {self.folder(experiment).states} holds no state to go on from: "
                f"start again with --overwrite, or choose another run="
            )
        is_over = mode == Mode.RESUME and self.folder(experiment).step >= config.train.steps
        if work.run.rdm.is_trained and not is_over:
            warn(
                f"{work.run.rdm.path} generates representations of the encoder as it was: once this training is over, "
                f"train it again (tools/train_rdm.py --overwrite)"
            )

    def claimed(self, work: Workspace) -> list[StageFolder]:
        """Return the folders that the training writes into."""
        return [self.folder(work.experiment), *([work.run.encoder] if work.is_joint else [])]

    def outline(self, work: Workspace) -> dict[str, nn.Module]:
        """Build the model without memory, and the head that aligns it or the encoder that learns with it."""
        config = work.experiment.require_generator()
        data = work.autoencoder.space
        if work.is_joint:
            with torch.device("meta"):
                joint = self._build_joint(work, data)
            self._load_joint(work, joint)
            config.sampler.check(joint.model.process)
            return {"generator": joint}
        cond: Space | None = None
        if config.condition == "class":
            cond = conditioning.label_space(work.images.train)
        elif config.condition == "cluster":
            cond = work.cluster_space
        elif config.condition == "representation":
            cond = work.raw_representation.space
        paired = work.raw_representation.space if config.joint_representation else None
        with torch.device("meta"):
            model = self._build(work, data, cond, paired)
        self._load(work, model)
        config.sampler.check(model.process)
        return {"generator": self._aligned(work, model)}

    def changes(self, work: Workspace, trained: Facts) -> Iterator[str]:
        """Yield another autoencoder, and another encoder or other classes where they are the condition."""
        config = work.experiment.require_generator()
        yield from _other("it generates latents of", trained.data, work.autoencoder.space)
        if trained.perceptual != work.perceptual_name:
            yield f"its perceptual loss is that of {trained.perceptual or 'none'}, not of {work.perceptual_name}"
        if work.is_joint:
            return
        if config.condition == "representation":
            yield from _other_z(work, "its condition is", trained.cond)
        elif config.joint_representation:
            yield from _other_z(work, "it generates", trained.z)
        elif config.condition == "class":
            yield from _other("its condition is", trained.cond, conditioning.label_space(work.images.train))

    def task(self, work: Workspace) -> GeneratorTask:
        """Build the task of generating images."""
        images, validation = work.images
        if work.is_joint:
            return self._joint_task(work)
        condition = conditioning.generator_conditioning(work)
        # Alignment needs the images themselves, for the encoder's patch tokens.
        is_aligned = work.experiment.require_generator().align is not None
        posteriors = None if is_aligned else work.posteriors()
        views = work.experiment.data.cached_views
        train_set = ConditionedImages(images, views, condition.z, posteriors, condition.labels)
        validation_set = ConditionedImages(validation, 1, condition.validation_z, labels=condition.validation_labels)
        work.seed_weights("generator")
        model = self._build(work, work.autoencoder.space, condition.space, condition.paired)
        self._load(work, model)
        module = self._aligned(work, model)
        encoder = work.encoder.to(work.accelerator.device) if is_aligned else None
        facts = _facts(
            work, image_size=work.image_size, cluster_counts=condition.cluster_counts, perceptual=work.perceptual_name
        )
        autoencoder, loss = work.autoencoder.to(work.accelerator.device), self._perceptual_loss(work)
        return GeneratorTask(module, autoencoder, train_set, validation_set, facts, encoder, loss, self._clock(work))

    def _check_judge(self, work: Workspace) -> None:
        """Refuse a judge that is not there, and to stop by a distance that is not measured."""
        config = work.experiment.require_generator()
        if config.train.judge is not None:
            open_judge(config.train.judge, work.image_size)
        validation = len(work.images.validation)
        if config.train.score == "fd" and not judged_samples(config, validation):
            raise UserError(
                f"generator.train.score is fd, but {validation} validation images and evaluate_every="
                f"{config.train.evaluate_every} leave fewer than {LEAST_JUDGED} samples to judge: use more images, or "
                f"evaluate less often, or set score to loss"
            )
        if config.train.score == "fd" and (work.is_joint or not self._is_encoded(work)):
            raise UserError(
                "generator.train.score is fd, which is measured in the space of a frozen encoder whose representations "
                "are cached: run tools/cache.py first, or set score to loss"
            )

    def _is_encoded(self, work: Workspace) -> bool:
        """Whether the representations of both splits are there, or will be because the condition needs them."""
        if work.experiment.require_generator().condition in conditioning.FROM_REPRESENTATIONS:
            return True
        try:
            return work.has_representations
        except UserError:
            return False

    def _clock(self, work: Workspace) -> Clock | None:
        """Return what judges the samples of evaluations, None where there would be too few of them."""
        config, (images, validation) = work.experiment.require_generator(), work.images
        count = judged_samples(config, len(validation))
        if not count:
            return None
        spaces = []
        if not work.is_joint and self._is_encoded(work):
            work.encoder.to(work.accelerator.device)
            own = work.representation
            spaces.append(judged_space("", own, work.z("train"), work.z("validation"), is_own=True))
        if config.train.judge is not None:
            judge = open_judge(config.train.judge, work.image_size)
            train, held_out = work.encoded_by(judge)
            spaces.append(judged_space("_judge", judge, train, held_out, is_own=False))
        return Clock(count, spaces, images, validation, config.train, self.folder(work.experiment))

    def _joint_task(self, work: Workspace) -> JointTask:
        views = work.experiment.data.cached_views
        train_set, validation_set = (
            ConditionedImages(images, number, None) for images, number in zip(work.images, (views, 1), strict=True)
        )
        joint = self._build_joint(work, work.autoencoder.space)
        self._load_joint(work, joint)
        autoencoder, loss = work.autoencoder.to(work.accelerator.device), self._perceptual_loss(work)
        facts = _facts(work, image_size=work.image_size, perceptual=work.perceptual_name)
        path = work.run.encoder.checkpoint
        return JointTask(joint, autoencoder, train_set, validation_set, facts, path, loss, self._clock(work))

    def _build_joint(self, work: Workspace, data: Space) -> JointModel:
        """Build the generator and the encoder that is trained with it, their initial weights seeded."""
        experiment, transform = work.experiment, work.joint_transform
        work.seed_weights("encoder")
        encoder = build_encoder(experiment.encoder, work.image_size)
        cond = Space((transform.width(encoder.width),), id=f"{experiment.encoder.name} in training")
        work.seed_weights("generator")
        return JointModel(self._build(work, data, cond), encoder, transform)

    def _load_joint(self, work: Workspace, joint: JointModel) -> None:
        self._load(work, joint.model)
        section, facts = work.experiment.encoder.model_dump(mode="json"), _facts(work, image_size=work.image_size)
        self._initial_encoder(work).load(joint.encoder, section, facts)

    def _initial(self, work: Workspace) -> Initial:
        return _initial(work, "generator", "generator", work.experiment.require_generator().train)

    def _initial_encoder(self, work: Workspace) -> Initial:
        """Return where the encoder of joint training starts: at that of the run which the generator starts from."""
        text = self._initial(work).text
        if text is not None:
            stage = RunFolder(os.path.expanduser(text)).encoder
            name = work.experiment.encoder.name
            if not stage.is_trained or stage.part(weights=False).config.get("name") != name:
                text = None
        return Initial("encoder", "generator", text)

    def _build(self, work: Workspace, data: Space, cond: Space | None, z: Space | None = None) -> GenerativeModel:
        config = work.experiment.require_generator()
        return build(config, GENERATORS.get(config.name), data, cond, z)

    def _load(self, work: Workspace, model: GenerativeModel) -> None:
        facts = _facts(work, **model.spaces, image_size=work.image_size)
        self._initial(work).load(model, work.experiment.require_generator().model_dump(mode="json"), facts)

    def _aligned(self, work: Workspace, model: GenerativeModel) -> GenerativeModel | AlignedModel:
        """Return a model, with the heads that align it with the encoder's patch tokens if that is asked for."""
        config, patches = work.experiment.require_generator(), self._patch_space(work)
        if config.align is None or patches is None:
            return model
        return AlignedModel(model, config.align, patches)

    def _patch_space(self, work: Workspace) -> Space | None:
        """Return the space of the encoder's patch tokens that the model is aligned with, None without alignment."""
        return None if work.experiment.require_generator().align is None else _patch_space(work, "generator.align")

    def _perceptual_loss(self, work: Workspace) -> PerceptualLoss | None:
        config, encoder = work.experiment.require_generator().perceptual, work.perceptual_encoder
        if config is None or encoder is None:
            return None
        return PerceptualLoss(config, encoder.to(work.accelerator.device), work.autoencoder)


def _check_estimates(work: Workspace, config: ModelConfig) -> None:
    """Refuse to shard a self-conditioned model over processes with one sample each.

    Half of them would make an estimate, and wait for ever for the shards of the others.
    """
    processes = work.accelerator.num_processes
    if work.accelerator.is_fsdp2 and config.self_condition and config.train.micro_batch_size // processes < 2:
        raise UserError(
            f"self_condition with FSDP needs two samples or more in each micro-batch of each process: choose a "
            f"train.batch_size of at least {2 * processes * config.train.grad_accum_steps}"
        )


def _check_images(folder: StageFolder, trained: Facts, work: Workspace) -> None:
    """Refuse to go on with images other than a part was trained on."""
    images, data = work.images.train, work.experiment.data
    if trained.fingerprint in ("", images.fingerprint):
        return
    root = f" in {vars(data)['root']}" if "root" in vars(data) else ""
    times = "" if images.in_memory else "; names, sizes and times of files count (cp -p and rsync -a keep the times)"
    changed = f": classes were {', '.join(trained.classes)}, now {', '.join(images.classes)}"
    raise UserError(
        f"{folder.path} was trained on other images than data set {data.name!r} holds{root} now"
        f"{changed if trained.classes and trained.classes != tuple(images.classes) else ''}: restore them to go on, "
        f"choose another run=, or train it again with --overwrite{times}"
    )


def _refuse(folder: StageFolder, changes: Sequence[str]) -> None:
    """Refuse to go on with other neighbors than a part was trained with."""
    if changes:
        raise UserError(
            f"{folder.path} was trained with other neighbors ({'; '.join(changes)}): restore them to go on, choose "
            f"another run=, or train it again with --overwrite"
        )


def _other(what: str, trained: Space | None, now: Space | None) -> Iterator[str]:
    if trained is not None and trained != now:
        yield f"{what} {trained}, not {now}"


def _other_z(work: Workspace, what: str, trained: Space | None) -> Iterator[str]:
    if trained is not None and not work.generates(trained):
        yield f"{what} representations of {trained.id}, not of {work.raw_representation.space.id}"


def _other_spaces(trained: Facts, facts: Facts) -> Iterator[str]:
    """Yield the spaces that are known only now that images are encoded, where they are others."""
    yield from _other("it generates", trained.data, facts.data)
    yield from _other("it generates", trained.z, facts.z)
    if facts.cond is not None:  # None: nothing, or representations of an encoder that is in training itself
        yield from _other("its condition is", trained.cond, facts.cond)


def _warn_of_jump(config: TrainConfig, folder: StageFolder, trained: Facts) -> None:
    """Warn where a training that is made longer goes on at another learning rate than it had."""
    step = folder.step  # with early stopping the model is of an earlier one
    if not 0 < step < config.steps or trained.steps in (0, config.steps) or config.schedule == "wsd":
        return  # by wsd it goes on from the state before the rate fell
    before = learning_rate(config.model_copy(update={"steps": trained.steps}), step - 1)
    after = learning_rate(config, step)
    if after > 1.1 * before:
        warn(
            f"{folder.path} was to end at step {trained.steps}, and now at {config.steps}: its {config.schedule} "
            f"schedule is stretched, and the learning rate jumps from {before:.2g} to {after:.2g} at step "
            f"{step}"
        )


def _initial(work: Workspace, kind: str, key: str, config: TrainConfig) -> Initial:
    return Initial(kind, key, None if work.goes_on else config.init_from)


def _overwritten(stage: Stage, work: Workspace, mode: Mode) -> Path | None:
    """Return the folder that a training replaces, None where it keeps what is there."""
    return stage.folder(work.experiment).path if mode == Mode.OVERWRITE else None


def _identity(experiment: Experiment, *sections: str) -> dict[str, Any]:
    """Return what a resumed training has to find unchanged: the seed, and all but the RUNTIME fields of some sections.

    An encoder's ORIGIN is included: other weights are another experiment.
    """
    values: dict[str, Any] = {"seed": experiment.seed}
    for key in sections:
        section = getattr(experiment, key)
        values[key] = training_identity(section) if isinstance(section, Config) else section
    return values


def _facts(work: Workspace, **others: Any) -> Facts:
    images = work.images.train
    return Facts(**{"classes": tuple(images.classes), "fingerprint": images.fingerprint} | others)


def _needs_encoder(config: TrainableAutoencoderConfig) -> bool:
    """Whether a loss of the autoencoder compares features of the experiment's encoder."""
    return config.train.perceptual == "encoder" or config.train.align is not None


def _patch_space(work: Workspace, option: str) -> Space:
    """Return the space `(rows, columns, D)` of the encoder's patch tokens, which `option` asks for.

    Raises:
        UserError: the encoder has none.
    """
    encoder, name = work.raw_representation.encoder, work.experiment.encoder.name
    if encoder.grid is None:
        raise UserError(
            f"{option} needs an encoder with patch tokens, and {name} has none: leave {option} out, or "
            f"choose a vision transformer"
        )
    blank = torch.zeros(1, 3, work.image_size, work.image_size, device=work.accelerator.device)
    with torch.no_grad():
        tokens = encoder.to(work.accelerator.device).patch_features(blank)
    return Space((*encoder.grid, tokens.shape[-1]), id=f"patches of {name}")


STAGES: dict[str, Stage] = {
    stage.name: stage for stage in (EncoderStage(), AutoencoderStage(), RDMStage(), GeneratorStage())
}
"""The trainings by name, in their order."""
