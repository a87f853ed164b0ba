"""The trainings of an experiment: encoder, tokenizer, RDM, generator. Each reads what those before left in the run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor

from rcg import autoencoder, cache, checkpoint, clusters, conditions, parallel
from rcg import config as config_file
from rcg.autoencoder import build_autoencoder, check_space, fill, has_weights, open_autoencoder
from rcg.config import AutoencoderConfig, Experiment, GeneratorConfig, RDMConfig, TrainConfig, differences
from rcg.contracts import Space, Task
from rcg.data import Images, Split, load_images
from rcg.errors import UserError
from rcg.loader import StepKeys
from rcg.model import build
from rcg.randomness import fold
from rcg.registry import GENERATORS, NETWORKS
from rcg.representation import Representation, Transform, build_encoder, open_representation, restore_encoder
from rcg.tasks.encoder import EncoderTask
from rcg.tasks.generator import Conditioned, GeneratorTask
from rcg.tasks.rdm import RDMTask
from rcg.tasks.tokenizer import TokenizerTask, compare
from rcg.train import latest_state, train
from rcg.vectors import Views

CONFIG = "config.yaml"
REPRESENTATION = ("encoder", "projection", "normalise")
"""The sections of an experiment that decide what z is."""
REPRESENTED = ("representation", "cluster")
"""The conditions of a generator that are made from representations."""
FITTED = 200_000
"""Most representations that a projection or a normaliser is fitted to."""


def train_encoder(experiment: Experiment, resume: bool, overwrite: bool) -> None:
    """Pre-train the experiment's encoder by contrast on its unlabelled images."""
    config = experiment.encoder
    if config.weights is not None:
        raise UserError(
            f"encoder.weights is {config.weights!r}, so there is nothing to train: go on with tools/train_rdm.py"
        )
    folder = experiment.run / "encoder"
    accelerator = parallel.start(config.train, folder)
    StepKeys.check(config.train, accelerator.num_processes)
    _refuse_foreign(folder, experiment, ("data", "encoder"), resume, overwrite)
    _seed(experiment, "encoder")
    images, validation = _images(experiment, accelerator)
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
    _refuse_foreign(folder, experiment, sections, resume, overwrite)
    _seed(experiment, "tokenizer")
    model = build_autoencoder(config, experiment.data.image_size)
    if config.train.start:
        fill(model, Path(config.train.start))
    comparisons = compare(config.train, encoder, accelerator.device)
    if accelerator.is_main_process and config.train.inception is None:
        instead = "encoder_fd is, in the encoder's space" if encoder else "PSNR and SSIM are"
        print(f"rFID is not reported without generator.autoencoder.train.inception=FILE; {instead}", flush=True)
    images, validation = _images(experiment, accelerator)
    facts = {"image_size": experiment.data.image_size, "fingerprint": images.fingerprint}
    task = TokenizerTask(model, images, validation, config.train, comparisons, facts)
    _run(task, config.train, folder, accelerator, experiment, overwrite, "tools/train_pixel.py")


def train_rdm(experiment: Experiment, resume: bool, overwrite: bool) -> None:
    """Train the experiment's representation diffusion model on representations computed once."""
    config = experiment.rdm
    representation = open_representation(experiment)
    folder = experiment.run / "rdm"
    accelerator = parallel.start(config.train, folder, shardable=True)
    StepKeys.check(config.train, accelerator.num_processes)
    _refuse_foreign(folder, experiment, ("data", *REPRESENTATION, "rdm"), resume, overwrite)
    images, validation = _images(experiment, accelerator)
    z = _train_z(images, representation, experiment, accelerator)
    held_out = _held_out_z(validation, representation, experiment, accelerator)
    _seed(experiment, "rdm")
    cond, told = _rdm_conditions(config, images)
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
        _check_rdm(experiment, representation)
    accelerator = parallel.start(config.train, folder, shardable=True)
    StepKeys.check(config.train, accelerator.num_processes)
    _refuse_foreign(folder, experiment, _deciding(experiment), resume, overwrite)
    images, validation = _images(experiment, accelerator)
    told = _told(experiment, representation, images, validation, accelerator)
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
    _refuse_foreign(folder, experiment, _deciding(experiment), resume=True, overwrite=False)
    path = folder / checkpoint.FILE
    return int(checkpoint.load(path, weights=False).facts["step"]) if path.is_file() else 0


def fill_caches(experiment: Experiment) -> None:
    """Compute the representations, and latents, that the trainings of an experiment read, on all processes."""
    representation = open_representation(experiment)
    accelerator = parallel.start()
    images, validation = _images(experiment, accelerator)
    z = _train_z(images, representation, experiment, accelerator)
    _held_out_z(validation, representation, experiment, accelerator)
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
    images, validation = _images(experiment, accelerator)
    z = _train_z(images, representation, experiment, accelerator)
    if representation.space != space:
        raise UserError(
            f"{experiment.run / 'rdm'} generates representations of {space.id}, but the experiment's are those of "
            f"{representation.space.id}: give the configuration that the RDM was trained with"
        )
    held_out = _held_out_z(validation, representation, experiment, accelerator)
    return Real(images, _first_views(z), validation, _first_views(held_out))


def _first_views(z: Views) -> Tensor:
    positions = torch.arange(len(z))
    return z.rows(positions, torch.zeros_like(positions))


def fitted_representation(experiment: Experiment, space: Space | None) -> Representation:
    """Return the map from images to z of an experiment; with `space` the one that its generator was trained with.

    Raises:
        UserError: the experiment's representations are not those of `space`.
    """
    representation = open_representation(experiment)
    if representation.transform.needs_fit:
        accelerator = parallel.start()
        _train_z(_images(experiment, accelerator).train, representation, experiment, accelerator)
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


class Told(NamedTuple):
    """What a generator is told of the images that it learns from, and of those held out."""

    space: Space | None = None
    z: Views | None = None  # (N, V, D)
    held_out_z: Views | None = None  # (M, 1, D)
    labels: Tensor | None = None  # (N,) in place of the images' own
    held_out_labels: Tensor | None = None  # (M,)
    facts: Mapping[str, Any] = {}


def _told(
    experiment: Experiment,
    representation: Representation | None,
    images: Images,
    validation: Images,
    accelerator: Accelerator,
) -> Told:
    if _generator(experiment).condition == "class":
        return Told(_label_space(images))
    if representation is None:
        return Told()
    z = _train_z(images, representation, experiment, accelerator)
    if representation.transform.needs_fit:
        _check_rdm(experiment, representation)
    held_out = _held_out_z(validation, representation, experiment, accelerator)
    if _generator(experiment).condition == "representation":
        return Told(representation.space, z, held_out)
    found = _clusters(experiment, representation, images, z, accelerator)
    near = clusters.assign(_first_views(held_out), found.centres)
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
    path = _kept_in_run(experiment, "clusters", facts)
    return clusters.kept(lambda: _first_views(z), number, experiment.seed, facts, path, accelerator)


def _kept_in_run(experiment: Experiment, what: str, facts: Mapping[str, Any]) -> Path:
    """Return the file of something that was fitted to representations, named by what decides it."""
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    return experiment.run / "representation" / f"{what}-{name}.safetensors"


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
    _claim(folder, experiment, accelerator, overwrite)
    progress = train(task, config, folder, accelerator, experiment.seed, experiment.data.workers)
    if accelerator.is_main_process and progress.step >= config.steps:
        print(f"{folder / checkpoint.FILE}: step {progress.step}, {progress.seconds:.0f} s. Next: {then}", flush=True)


def _images(experiment: Experiment, accelerator: Accelerator) -> Split:
    """Open the data set, on the first process alone at first: it may have to download or check files."""
    with accelerator.main_process_first():
        return load_images(experiment.data)


def _seed(experiment: Experiment, part: str) -> None:
    """Seed the initial weights of a part, so that they depend on nothing that was drawn before."""
    torch.manual_seed(fold(experiment.seed, "weights", part))


def _rep(
    images: Images,
    representation: Representation,
    views: int,
    experiment: Experiment,
    accelerator: Accelerator,
    what: str,
) -> Views:
    return cache.representations(images, representation, views, experiment.run / "cache", accelerator, what)


def _train_z(images: Images, representation: Representation, experiment: Experiment, accelerator: Accelerator) -> Views:
    """Return z of the training images in all kept views; a transform that depends on data is fitted to them first."""
    rep = _rep(images, representation, experiment.data.kept_views, experiment, accelerator, "train")
    if representation.transform.needs_fit:
        _fit(representation, rep, images, experiment, accelerator)
    return rep.map(representation.transform)


def _held_out_z(
    validation: Images, representation: Representation, experiment: Experiment, accelerator: Accelerator
) -> Views:
    """Return z of the held-out images, by the transform that `_train_z` has fitted."""
    rep = _rep(validation, representation, 1, experiment, accelerator, "validation")
    return rep.map(representation.transform)


def _fit(
    representation: Representation, rep: Views, images: Images, experiment: Experiment, accelerator: Accelerator
) -> None:
    """Fit the transform on one process and keep it in the run, under a name that says what it was fitted to."""
    settings = experiment.model_dump(mode="json", include={"projection", "normalise"})
    facts = {"encoder": representation.encoder_id, "images": images.fingerprint, "views": rep.views, **settings}
    path = _kept_in_run(experiment, "transform", facts)
    if accelerator.is_main_process and not path.is_file():
        order = torch.randperm(len(rep), generator=torch.Generator().manual_seed(0))[:FITTED]
        representation.transform.fit(rep.rows(order, order % rep.views))
        checkpoint.save_tensors(path, representation.transform.state_dict(), facts)
    accelerator.wait_for_everyone()
    representation.transform.load(checkpoint.load(path).tensors)


def _rdm_conditions(config: RDMConfig, images: Images) -> tuple[Space | None, Tensor | None]:
    """Return the space of what the RDM is told of each training image, and these labels `(N,)` or vectors `(N, D)`."""
    if config.vectors is not None:
        vectors = conditions.read(config.vectors)
        if len(vectors) != len(images.source):
            raise UserError(
                f"{config.vectors} holds {len(vectors)} vectors, but the data set has {len(images.source)} images: "
                f"one row per image is needed, in the order of the data set"
            )
        return Space((vectors.shape[1],), id="vectors"), vectors[images.indices]
    return (_label_space(images), images.labels) if config.condition == "class" else (None, None)


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


def _label_space(images: Images) -> Space:
    if images.labels is None:
        raise UserError("condition is class, but the data set has no labels: set condition to none or representation")
    return Space((), vocab=len(images.classes), id="labels")


def _facts(images: Images) -> dict[str, Any]:
    return {"classes": list(images.classes), "fingerprint": images.fingerprint}


def _check_rdm(experiment: Experiment, representation: Representation) -> None:
    """Refuse to train a generator for hours on another representation than the RDM of the same run generates."""
    path = experiment.run / "rdm" / checkpoint.FILE
    if path.is_file() and _generator(experiment).condition == "representation":
        space = Space.from_json(checkpoint.load(path).facts["data"])
        if space != representation.space:
            raise UserError(
                f"{path} generates representations of {space.id}, but the generator would be trained on those "
                f"of {representation.space.id}: train the RDM again (tools/train_rdm.py --overwrite) or choose another "
                f"run="
            )


def _check_latents(folder: Path, first_stage: Any) -> None:
    """Refuse to go on with a generator that was trained in another autoencoder's space."""
    path = folder / checkpoint.FILE
    if path.is_file():
        check_space(first_stage, Space.from_json(checkpoint.load(path).facts["data"]), str(path))


def _refuse_foreign(
    folder: Path, experiment: Experiment, sections: tuple[str, ...], resume: bool, overwrite: bool
) -> None:
    """Refuse a folder that holds another experiment, or this one when neither --resume nor --overwrite was given."""
    path = folder / CONFIG
    if overwrite or not folder.exists():
        return
    if not path.is_file():
        if any(folder.iterdir()):
            raise UserError(f"{folder} holds files that are not an experiment's: choose another run=")
        return
    there, mine = yaml.safe_load(path.read_text()), experiment.model_dump(mode="json")
    old, new = ({key: _essence(_section(values, key)) for key in ("seed", *sections)} for values in (there, mine))
    changed = list(differences(old, new))
    if changed:
        raise UserError(
            f"{folder} holds another experiment ({'; '.join(changed[:3])}): "
            f"choose another run=, or replace it with --overwrite"
        )
    if not resume:
        state = latest_state(folder)
        at = f"step {int(state.name.split('-')[1])} of this experiment" if state else "this experiment"
        raise UserError(f"{folder} already holds {at}: go on with --resume, or start again with --overwrite")


def _claim(folder: Path, experiment: Experiment, accelerator: Accelerator, overwrite: bool) -> None:
    """Make `folder` this experiment's: its resolved configuration is written beside the weights."""
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked
    if accelerator.is_main_process:
        if overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        with checkpoint.atomic(folder / CONFIG) as temporary:
            temporary.write_text(experiment.to_yaml())
    accelerator.wait_for_everyone()


def _section(values: Any, dotted: str) -> Any:
    """Return the value of a dotted key, None where there is none."""
    for key in dotted.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _essence(value: Any) -> Any:
    """Leave out what may change when a run goes on."""
    if not isinstance(value, dict):
        return value
    skipped = TrainConfig.resumable if "batch_size" in value else {"workers"}
    return {key: _essence(item) for key, item in value.items() if key not in skipped}
