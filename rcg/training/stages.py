"""The trainings of an experiment: encoder, tokenizer, RDM, generator. Each reads what those before left in the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from rcg.config import AutoencoderConfig, Experiment, GeneratorConfig, TrainConfig
from rcg.core import checkpoint
from rcg.core.contracts import Space, Task
from rcg.core.errors import UserError
from rcg.core.registry import GENERATORS, NETWORKS
from rcg.core.rng import fold
from rcg.data.images import Images
from rcg.data.loading import StepKeys
from rcg.data.views import Views
from rcg.diffusion.model import build
from rcg.distributed import launch as parallel
from rcg.encoding import autoencoder, cache
from rcg.encoding.autoencoder import build_autoencoder, check_space, fill, has_weights, open_autoencoder
from rcg.encoding.representation import Representation, build_encoder, open_representation
from rcg.encoding.run_folder import claim, refuse_foreign
from rcg.encoding.workspace import held_out_z, open_images, train_z
from rcg.training.conditioning import check_rdm, rdm_conditions, what_it_is_told
from rcg.training.loop import train
from rcg.training.tasks.autoencoder import AutoencoderTask, compare
from rcg.training.tasks.encoder import EncoderTask
from rcg.training.tasks.generator import Conditioned, GeneratorTask
from rcg.training.tasks.rdm import RDMTask

REPRESENTATION = ("encoder", "projection", "normalize")
"""The sections of an experiment that decide what z is."""
REPRESENTED = ("representation", "cluster")
"""The conditions of a generator that are made from representations."""


def train_encoder(experiment: Experiment, resume: bool, overwrite: bool) -> None:
    """Pre-train the experiment's encoder by contrast on its unlabeled images."""
    config = experiment.encoder
    if config.weights is not None:
        raise UserError(
            f"encoder.weights is {config.weights!r}, so there is nothing to train: go on with tools/train_rdm.py"
        )
    folder = experiment.run / "encoder"
    accelerator = parallel.start(config.train, folder)
    StepKeys.check(config.train, accelerator.num_processes)
    refuse_foreign(folder, experiment, ("data", "encoder"), resume, overwrite)
    _seed(experiment, "encoder")
    images, validation = open_images(experiment, accelerator)
    encoder = build_encoder(config, experiment.data.image_size)
    task = EncoderTask(encoder, images, validation, config.train)
    if accelerator.device.type == "cuda" and accelerator.num_processes > 1:
        task.modules = {k: torch.nn.SyncBatchNorm.convert_sync_batchnorm(m) for k, m in task.modules.items()}
    _run(task, config.train, folder, accelerator, experiment, overwrite, "tools/train_rdm.py")


def train_tokenizer(experiment: Experiment, resume: bool, overwrite: bool) -> None:
    """Train the autoencoder of the experiment's generator on its images."""
    config = _trainable_autoencoder(experiment)
    folder = experiment.run / autoencoder.FOLDER
    encoder = _perceptual_encoder(experiment, config)
    accelerator = parallel.start(config.train, folder)
    StepKeys.check(config.train, accelerator.num_processes)
    sections = ("data", "generator.autoencoder", *(("encoder",) if encoder else ()))
    refuse_foreign(folder, experiment, sections, resume, overwrite)
    if overwrite and config.train.init_from and Path(config.train.init_from).resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"generator.autoencoder.train.init_from is {config.train.init_from}, in the folder that --overwrite replaces: "
            f"copy the file to another place first"
        )
    _seed(experiment, "tokenizer")
    model = build_autoencoder(config, experiment.data.image_size)
    if config.train.init_from:
        fill(model, Path(config.train.init_from))
    if config.train.decoder_only:
        model.keep_space()
    comparisons = compare(config.train, encoder, accelerator.device)
    if accelerator.is_main_process and config.train.inception is None:
        instead = "encoder_fd is, in the encoder's space" if encoder else "PSNR and SSIM are"
        print(f"rFID is not reported without generator.autoencoder.train.inception=FILE; {instead}", flush=True)
    images, validation = open_images(experiment, accelerator)
    facts = {"image_size": experiment.data.image_size, "fingerprint": images.fingerprint}
    task = AutoencoderTask(model, images, validation, config.train, comparisons, facts)
    _run(task, config.train, folder, accelerator, experiment, overwrite, "tools/train_pixel.py")


def train_rdm(experiment: Experiment, resume: bool, overwrite: bool) -> None:
    """Train the experiment's representation diffusion model on representations computed once."""
    config = experiment.rdm
    representation = open_representation(experiment)
    folder = experiment.run / "rdm"
    accelerator = parallel.start(config.train, folder, shardable=True)
    StepKeys.check(config.train, accelerator.num_processes)
    refuse_foreign(folder, experiment, ("data", *REPRESENTATION, "rdm"), resume, overwrite)
    images, validation = open_images(experiment, accelerator)
    z = train_z(images, representation, experiment, accelerator)
    held_out = held_out_z(validation, representation, experiment, accelerator)
    _seed(experiment, "rdm")
    cond, told = rdm_conditions(config, images)
    model = build(config, NETWORKS.get(config.name), representation.space, cond)
    labels = validation.labels if config.condition == "class" else None
    task = RDMTask(model, z, told, held_out, labels, _facts(images))
    _run(task, config.train, folder, accelerator, experiment, overwrite, "tools/train_pixel.py")


def train_generator(experiment: Experiment, resume: bool, overwrite: bool) -> None:
    """Train the experiment's pixel generator, given representations, labels or nothing."""
    config = _generator(experiment)
    representation = open_representation(experiment) if config.condition in REPRESENTED else None
    folder = generator_folder(experiment)
    first_stage = open_autoencoder(config.autoencoder, experiment.data.image_size, experiment.run)
    if not overwrite:
        _check_latents(folder, first_stage)
    encoder, patches = _aligned_with(experiment, representation)
    if representation and not representation.transform.needs_fit:  # else the space is known only once it is fitted
        check_rdm(config.condition, experiment, representation)
    accelerator = parallel.start(config.train, folder, shardable=True)
    StepKeys.check(config.train, accelerator.num_processes)
    refuse_foreign(folder, experiment, _deciding(experiment), resume, overwrite)
    images, validation = open_images(experiment, accelerator)
    told = what_it_is_told(config.condition, experiment, representation, images, validation, accelerator)
    # Alignment needs the images themselves, for the encoder's patch tokens.
    latents = None if encoder else _kept_latents(images, first_stage, experiment, accelerator)
    train_set = Conditioned(images, experiment.data.kept_views, told.z, latents, told.labels)
    held_out = Conditioned(validation, 1, told.held_out_z, labels=told.held_out_labels)
    _seed(experiment, "generator")
    model = build(config, GENERATORS.get(config.name), first_stage.space, told.space, patches)
    facts = {**_facts(images), **told.facts, "image_size": experiment.data.image_size}
    if encoder:
        encoder.to(accelerator.device)
    task = GeneratorTask(model, first_stage.to(accelerator.device), train_set, held_out, facts, encoder)
    _run(task, config.train, folder, accelerator, experiment, overwrite, "tools/sample.py")


def generator_steps(experiment: Experiment) -> int:
    """Return how many steps the experiment's generator was trained, 0 where its folder holds none.

    Raises:
        UserError: the folder holds another experiment's, or other files.
    """
    folder = generator_folder(experiment)
    refuse_foreign(folder, experiment, _deciding(experiment), resume=True, overwrite=False)
    path = folder / checkpoint.FILE
    return int(checkpoint.load(path, weights=False).facts["step"]) if path.is_file() else 0


def fill_caches(experiment: Experiment) -> None:
    """Compute the representations, and latents, that the trainings of an experiment read, on all processes."""
    representation = open_representation(experiment)
    accelerator = parallel.start()
    images, validation = open_images(experiment, accelerator)
    z = train_z(images, representation, experiment, accelerator)
    held_out_z(validation, representation, experiment, accelerator)
    if accelerator.is_main_process:
        print(
            f"{experiment.run / 'cache'}: {len(z)} training images x {z.views} views and {len(validation)} held-out "
            f"ones, {representation.space.shape[0]} features each. Next: tools/train_rdm.py",
            flush=True,
        )
    if experiment.generator is not None:
        _fill_latents(images, experiment.generator, experiment, accelerator)


def _fill_latents(images: Images, config: GeneratorConfig, experiment: Experiment, accelerator: Accelerator) -> None:
    """Encode the training images in all kept views, once there is an autoencoder to do it."""
    try:
        first_stage = open_autoencoder(config.autoencoder, experiment.data.image_size, experiment.run)
    except UserError as error:
        if accelerator.is_main_process:
            print(f"latents are not cached yet: {error}", flush=True)
        return
    if has_weights(first_stage):
        first_stage.to(accelerator.device)
        kept = cache.latents(images, first_stage, experiment.data.kept_views, experiment.run / "cache", "train")
        found = kept.fill(lambda image: cache.keep(first_stage, image), accelerator, "train")
        if accelerator.is_main_process:
            shape = "x".join(map(str, first_stage.space.shape))
            print(f"{kept.folder}: {len(found)} training images x {found.views} views, latents {shape}", flush=True)


def _kept_latents(images: Images, first_stage: Any, experiment: Experiment, accelerator: Accelerator) -> Views | None:
    """Return the cached latents of the training images, None where tools/cache.py has not computed all of them."""
    if not has_weights(first_stage):
        return None
    kept = cache.latents(images, first_stage, experiment.data.kept_views, experiment.run / "cache", "train")
    if kept.missing:
        return None
    return kept.serve(accelerator, "train").map(cache.widen)


def generator_folder(experiment: Experiment) -> Path:
    """Return the folder of the generator's arm."""
    return experiment.run / _generator(experiment).arm


def _generator(experiment: Experiment) -> GeneratorConfig:
    if experiment.generator is None:
        raise UserError("the experiment ends with its RDM: add a section generator: {name: dit, ...} to train one")
    return experiment.generator


def _deciding(experiment: Experiment) -> tuple[str, ...]:
    """Return the sections of an experiment that decide what its generator becomes."""
    config = _generator(experiment)
    sections = ["data", "generator"]
    if getattr(config, "align", None) is not None:
        sections.append("encoder")
    if config.condition in REPRESENTED:
        sections += REPRESENTATION
    return (*sections, "clusters") if config.condition == "cluster" else tuple(sections)


def _trainable_autoencoder(experiment: Experiment) -> AutoencoderConfig:
    config = _generator(experiment).autoencoder
    if not isinstance(config, AutoencoderConfig):
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


def _perceptual_encoder(experiment: Experiment, config: AutoencoderConfig) -> Any:
    """Return the experiment's encoder if the perceptual loss asks for it, else None."""
    if config.train.perceptual != "encoder":
        return None
    try:
        return open_representation(experiment).encoder
    except UserError as error:
        raise UserError(f"{error}; or set generator.autoencoder.train.perceptual to vgg or none") from None


def _run(
    task: Task,
    config: TrainConfig,
    folder: Path,
    accelerator: Accelerator,
    experiment: Experiment,
    overwrite: bool,
    then: str,
) -> None:
    """Train; everything that can be refused was refused before the folder is touched."""
    claim(folder, experiment, accelerator, overwrite)
    progress = train(task, config, folder, accelerator, experiment.seed, experiment.data.num_workers)
    if accelerator.is_main_process and progress.step >= config.steps:
        print(f"{folder / checkpoint.FILE}: step {progress.step}, {progress.seconds:.0f} s. Next: {then}", flush=True)


def _seed(experiment: Experiment, part: str) -> None:
    """Seed the initial weights of a part, so that they depend on nothing that was drawn before."""
    torch.manual_seed(fold(experiment.seed, "weights", part))


def _aligned_with(experiment: Experiment, representation: Representation | None) -> tuple[Any, Space | None]:
    """Return the encoder that the generator is aligned with and the space `(rows, columns, D)` of its patch tokens."""
    if getattr(experiment.generator, "align", None) is None:
        return None, None
    encoder: Any = (representation or open_representation(experiment)).encoder
    if encoder.grid is None:
        raise UserError(
            f"generator.align needs an encoder with patch tokens, and {experiment.encoder.name} has none: "
            f"leave generator.align out, or choose a vision transformer"
        )
    side = experiment.data.image_size
    with torch.no_grad():
        tokens = encoder.tokens(torch.zeros(1, 3, side, side))
    return encoder, Space((*encoder.grid, tokens.shape[-1]), id=f"patches of {experiment.encoder.name}")


def _facts(images: Images) -> dict[str, Any]:
    return {"classes": list(images.classes), "fingerprint": images.fingerprint}


def _check_latents(folder: Path, first_stage: Any) -> None:
    """Refuse to go on with a generator that was trained in another autoencoder's space."""
    path = folder / checkpoint.FILE
    if path.is_file():
        check_space(first_stage, Space.from_json(checkpoint.load(path).facts["data"]), str(path))
