"""One YAML file -> one frozen, typed `Experiment`; an unknown key is refused with its path and the nearest key.

Every section is a `Config` beside the class that it configures; the sections that several rooms share stand here.
Facts that a neighbor knows (representation width, image shape, class count) are derived, never typed by a person.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from rcg.core.errors import UserError, nearest
from rcg.core.registry import (
    AUTOENCODERS,
    DATASETS,
    ENCODERS,
    GENERATORS,
    NETWORKS,
    PROCESSES,
    SAMPLERS,
    Registry,
)

Fraction = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """A frozen value that a person may write in YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        for key in value if isinstance(value, dict) else ():
            if key not in cls.model_fields:
                hint = nearest(str(key), cls.model_fields)
                raise PydanticCustomError("unknown_key", "unknown key; {hint}", {"key": str(key), "hint": hint})
        return value


class ComponentConfig(Config):
    """The section of a component that a registry finds by `name`."""

    name: str
    """Which one."""


def component(registry: Registry, **defaults: Any) -> BeforeValidator:
    """Validate a section with the `Config` of the component that it names, or of the registry's first choice.

    `defaults` fill in what a section leaves out, as long as it names no other component than they do.
    """

    def choose(value: Any) -> Any:
        if isinstance(value, Config):
            return value
        section = {"name": value} if isinstance(value, str) else value
        if not isinstance(section, dict):
            raise PydanticCustomError("section", "expected a name or a section with keys")
        if section.get("name", defaults.get("name")) == defaults.get("name"):
            section = {**defaults, **section}
        name = section.get("name", registry.default)
        if not isinstance(name, str):
            raise PydanticCustomError("name", "needs a name; known: {known}", {"known": ", ".join(registry.names())})
        try:
            schema = registry.get(name).Config
        except UserError as error:
            raise PydanticCustomError("name", "{text}", {"text": str(error)}) from None
        return schema.model_validate(section)

    return BeforeValidator(choose)


def unsaid() -> Any:
    """Return the default of a section that the defaults of its `component` fill in."""
    return Field(default={})


class TrainConfig(Config):
    """How the one training loop runs."""

    steps: NonNegativeInt = 10_000
    """Optimizer steps."""
    batch_size: PositiveInt = 64
    """Samples of one optimizer step, over all processes and accumulated micro-batches."""
    grad_accum_steps: PositiveInt = 1
    """Micro-batches of one optimizer step."""
    lr: PositiveFloat = 1e-4
    """Peak learning rate of AdamW."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's averaging coefficients."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay, on matrices only unless `decay_all`."""
    decay_all: bool = False
    """Decay biases and normalization weights too, as the published RDM does."""
    warmup: NonNegativeInt = 0
    """Steps of linear learning-rate warm-up."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or half a cosine to zero at the last step."""
    grad_clip: PositiveFloat | None = None
    """Largest gradient norm; none: no clipping."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.9999
    """Decay of the weights' moving average (with warm-up); none: keep the live weights."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision; auto: bf16 where the device computes it natively, else none."""
    compile: bool = False
    """Compile the network with `torch.compile`."""
    log_every: PositiveInt = 50
    """Steps between two lines of the log."""
    evaluate_every: PositiveInt | None = None
    """Steps between two evaluations (metrics, sample grid); none: at the end only."""
    patience: PositiveInt | None = None
    """Evaluations without a better rep-FD, or validation loss, after which training ends; the best model is kept."""
    save_every: PositiveInt = 1000
    """Steps between two checkpoints."""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Where accelerate sends the curves; `log.jsonl` is always written."""

    # What may change when a run goes on: nothing here alters a step that was already taken.
    resumable: ClassVar[frozenset[str]] = frozenset(
        {"steps", "log_every", "evaluate_every", "patience", "save_every", "tracker"}
    )


class DataConfig(ComponentConfig):
    """Which images, and how they are cut."""

    image_size: PositiveInt = 32
    """Side of the square images that leave the data set, in pixels."""
    crop: Literal["center", "random"] = "center"
    """Where the square is cut after the short side was resized to `image_size`."""
    flip: bool = False
    """Mirror every second view."""
    shift: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Largest random translation of every view but the first, as a share of the side: it multiplies small data sets."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest random rotation of every view but the first, in degrees; like `shift` it multiplies small data sets."""
    views: PositiveInt | None = None
    """Views of one image whose representations are kept; none: 1, times 2 with `flip`, times 4 with random cuts."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the images held out for metrics."""
    split_seed: NonNegativeInt = 0
    """Seed of the split."""
    limit: PositiveInt | None = None
    """Use only so many images, drawn at random."""
    num_workers: NonNegativeInt | None = None
    """Loader processes; none: chosen from the data set and the machine."""

    @property
    def kept_views(self) -> int:
        """Number of views of one image whose representations are computed once and kept."""
        moved = self.crop == "random" or self.shift or self.rotate
        return self.views or (2 if self.flip else 1) * (4 if moved else 1)


class AugmentConfig(Config):
    """Random views for contrastive pre-training (torchvision v2); what is left out follows the image size."""

    size: PositiveInt | None = None
    """Side of the views in pixels; none: that of the images. A ResNet learns faster, and no worse, from views of three
    quarters of it, because random crops magnify what they show (Touvron et al., NeurIPS 2019)."""
    crop: tuple[Fraction, Fraction] | None = None
    """Range of the crop's share of the area; none: (0.2, 1), from 64 px (0.08, 1)."""
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    """Range of the crop's aspect ratio."""
    flip: bool = True
    """Mirror half of the views."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation in degrees."""
    jitter: Annotated[float, Field(ge=0)] = 1.0
    """Strength of the color jitter: 1 is brightness 0.4, contrast 0.4, saturation 0.2, hue 0.1, on 80 % of views."""
    gray: Fraction = 0.2
    """Share of views without color."""
    blur: Fraction | None = None
    """Share of blurred views; none: 0 below 64 px, then 0.5."""
    erase: Fraction = 0.0
    """Share of views with a random rectangle erased."""


class ContrastiveTrain(TrainConfig):
    """MoCo v3 pre-training (Chen, Xie, He, ICCV 2021)."""

    batch_size: PositiveInt = 256
    lr: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: NonNegativeInt = 100
    schedule: Literal["constant", "cosine"] = "cosine"
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    temperature: PositiveFloat = 0.2
    """Temperature of the InfoNCE loss."""
    momentum: Fraction = 0.99
    """Momentum of the key encoder at the start; it rises to 1 by half a cosine."""
    predictor: PositiveInt = 1024
    """Hidden width of the predictor."""
    augment: AugmentConfig = AugmentConfig()
    """The two views."""


class EncoderConfig(ComponentConfig):
    """Which frozen encoder defines the representation."""

    weights: str | None = None
    """Where the weights come from; none: trained by tools/train_encoder.py into this run."""
    feature: Literal["backbone", "projector"] = "backbone"
    """Which output is the representation."""
    train: ContrastiveTrain = ContrastiveTrain()
    """Pre-training of encoders without weights."""

    portable: ClassVar[frozenset[str]] = frozenset({"name", "train"})


class ProjectionConfig(Config):
    """Principal components of the training set's representations: the width decides how well they can be modeled."""

    width: PositiveInt = 256
    """Components kept; RCG's ablation found 256 best (Table 7c)."""
    whiten: bool = False
    """Give all components the same variance."""


class AutoencoderTrain(TrainConfig):
    """Training of an autoencoder by pixels, features and a discriminator (VQGAN, Esser et al., CVPR 2021)."""

    steps: NonNegativeInt = 100_000
    lr: PositiveFloat = 2e-4
    betas: tuple[Fraction, Fraction] = (0.5, 0.9)
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.999
    pixel: Literal["l1", "l2"] = "l1"
    """Distance of pixels."""
    init_from: str | None = None
    """File of weights to start from, ours or as published; none: random ones."""
    decoder_only: bool = False
    """Train nothing but the decoder of `init_from`: its tokens or latents, and generators of them, stay what they are."""
    perceptual: Literal["encoder", "vgg", "none"] = "encoder"
    """Whose features are compared too: those of the experiment's encoder, or of torchvision's VGG-16 as in LPIPS."""
    perceptual_weight: PositiveFloat = 1.0
    """Weight of the perceptual loss."""
    vgg: str | None = None
    """File of VGG-16's weights; none: the one in torch's cache."""
    adversarial: Annotated[float, Field(ge=0)] = 0.8
    """Weight of the patch discriminator's verdict, before it is adapted (VQGAN, eq. 7); 0: no discriminator."""
    adversarial_start: NonNegativeInt = 20_000
    """Step at which the discriminator comes in."""
    discriminator_width: PositiveInt = 64
    """Channels of the discriminator's first layer."""
    inception: str | None = None
    """File of torch-fidelity's InceptionV3 for the rFID of evaluations; none: rFID is not reported."""
    inception_tap: Literal["64", "192", "768", "2048"] = "2048"
    """Which of its layers; only 2048 is comparable with published figures."""

    @model_validator(mode="after")
    def _decoders_of_something(self) -> AutoencoderTrain:
        if self.decoder_only and self.init_from is None:
            raise ValueError(
                "decoder_only trains the decoder of an autoencoder that is there: name its file in init_from"
            )
        return self


class AutoencoderConfig(ComponentConfig):
    """Which frozen first stage defines the space of the generator."""

    weights: str | None = None
    """File of its weights, ours or as published; none: trained by tools/train_autoencoder.py into this run."""
    train: AutoencoderTrain = AutoencoderTrain()
    """Training of autoencoders without weights."""


class SamplerConfig(ComponentConfig):
    """What every walk from noise to data has."""

    discrete: ClassVar[bool] = False
    """Whether it fills in tokens."""

    steps: PositiveInt = 50
    """Network evaluations."""
    temperature: PositiveFloat = 1.0
    """Scale of all noise that is drawn; below 1 samples are more typical and less diverse."""


class ProcessConfig(ComponentConfig):
    """How data is corrupted."""

    discrete: ClassVar[bool] = False
    """Whether it corrupts tokens."""

    @property
    def amplification(self) -> float:
        """By what an error of the network is multiplied in the clean data that it implies, at the noisiest level."""
        return 1.0


class GuidanceConfig(Config):
    """Classifier-free guidance (Ho and Salimans, 2022), limited to an interval (Kynkäänniemi et al., 2024)."""

    scale: Annotated[float, Field(ge=0)] = 1.0
    """null + scale * (conditional - null); 1: no guidance."""
    interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Share of the noise time in which guidance acts; 0 is clean data, 1 pure noise."""
    ramp: Literal["constant", "linear", "cosine"] = "constant"
    """How guidance grows from none at noise to `scale` at the last step: at once, in a line (RCG's MAGE), or as half a
    cosine."""
    channels: PositiveInt | None = None
    """Guide only so many channels, the first ones; none: all. The published DiT guides three of four."""


class ModelConfig(ComponentConfig):
    """A network times a process, given a condition."""

    condition: Literal["none", "class", "cluster", "vector", "representation"] = "none"
    """What the model is told."""
    condition_dropout: Fraction = 0.1
    """Share of training samples whose condition is replaced by the learned null (guidance needs it)."""
    condition_noise: Annotated[float, Field(ge=0)] = 0.0
    """Deviation of noise added to representations in training: a generator that is not told exactly which image it is
    shown does not learn it by heart, and forgives an RDM its mistakes."""
    self_condition: bool = False
    """Show the network its previous estimate of the clean data (Analog Bits; Chen, Zhang, Hinton, ICLR 2023)."""
    process: Annotated[SerializeAsAny[ProcessConfig], component(PROCESSES, name="gaussian")] = unsaid()
    """How data is corrupted and what the network predicts."""
    sampler: Annotated[SerializeAsAny[SamplerConfig], component(SAMPLERS, name="ddim")] = unsaid()
    """How samples are drawn."""
    guidance: GuidanceConfig = GuidanceConfig()
    """Guidance in sampling."""
    train: TrainConfig = TrainConfig()
    """Training."""

    portable: ClassVar[frozenset[str]] = frozenset(
        {"name", "condition", "condition_dropout", "condition_noise", "self_condition", "train"}
    )

    @property
    def inputs(self) -> int:
        """Tensors that the network sees side by side: x_t, and its previous estimate if it is shown that."""
        return 2 if self.self_condition else 1

    @model_validator(mode="after")
    def _refuse_what_tokens_cannot(self) -> ModelConfig:
        if self.process.discrete != self.sampler.discrete:
            known = [name for name in SAMPLERS.names() if SAMPLERS.get(name).Config.discrete == self.process.discrete]
            raise ValueError(
                f"the sampler {self.sampler.name} cannot walk back the process {self.process.name}; those that can: "
                f"{', '.join(known)}"
            )
        return self

    def doubts(self) -> Iterator[str]:
        """Yield what is allowed, but hardly meant."""
        if self.process.amplification > TOLERATED and not getattr(self.sampler, "clip", False):
            yield (
                f"process: at the noisiest level an error of the predicted noise is {self.process.amplification:.3g} "
                f"times as large in clean data, and {self.sampler.name} with {self.sampler.steps} steps sets out from "
                f"there: choose predict: v or x0, or schedule: linear with 1000 levels"
            )


TOLERATED = 2.0**9
"""Beyond it the rounding of bfloat16 alone, 2^-9, is an error as large as the data; DDPM's linear schedule has 157."""


class RDMTrain(TrainConfig):
    """The published recipe of the RDM (RCG, Table 5) apart from its length."""

    batch_size: PositiveInt = 512
    lr: PositiveFloat = 5.12e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    decay_all: bool = True


class RDMConfig(ModelConfig):
    """The representation diffusion model.

    It was published with process: {schedule: sqrt_linear, predict: x0} and 250 steps of ddim at eta 1; the defaults are
    what came closer to real representations, in fewer steps (docs/benchmarks.md).
    """

    condition: Literal["none", "class", "vector"] = "none"
    """What the RDM is told: nothing, the label, or a vector that was computed elsewhere (a text embedding, say)."""
    vectors: Path | None = None
    """Where condition is vector: a safetensors file with a tensor `vectors` `(N, D)`, one row per image of the data
    set, in its order."""
    process: Annotated[
        SerializeAsAny[ProcessConfig], component(PROCESSES, name="gaussian", schedule="cosine", predict="v")
    ] = unsaid()
    """How representations are corrupted and what the network predicts; by default v on the cosine schedule, on
    which eps is no choice: its last level is all but pure noise."""
    sampler: Annotated[SerializeAsAny[SamplerConfig], component(SAMPLERS, name="unipc", steps=16)] = unsaid()
    """How representations are drawn; by default 16 steps of unipc."""
    train: RDMTrain = RDMTrain()

    @model_validator(mode="after")
    def _vectors_for_their_condition_alone(self) -> RDMConfig:
        if (self.condition == "vector") != (self.vectors is not None):
            raise ValueError("vectors names the file for condition: vector; give both of them, or neither")
        return self


class AlignConfig(Config):
    """Representation alignment (REPA; Yu et al., ICLR 2025): inner tokens learn the frozen encoder's patch tokens."""

    depth: PositiveInt = 8
    """Blocks after which the tokens are compared."""
    weight: PositiveFloat = 0.5
    """Weight of the loss beside that of the process."""
    hidden: PositiveInt = 2048
    """Hidden width of the projection."""


class GeneratorConfig(ModelConfig):
    """A pixel generator: it paints an image from a representation (or a label, or nothing)."""

    condition: Literal["none", "class", "cluster", "representation"] = "representation"
    """What the generator is told: nothing, the label, the cluster of the representation, or all of it."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    autoencoder: Annotated[SerializeAsAny[ComponentConfig], component(AUTOENCODERS, name="pixels")] = unsaid()
    """The space in which the generator works."""

    portable: ClassVar[frozenset[str]] = ModelConfig.portable | {"grad_checkpointing"}

    @property
    def arm(self) -> str:
        """Name of its folder in a run: its own, its condition if not a representation, self if self-conditioned."""
        told = [] if self.condition == "representation" else [self.condition]
        return "-".join([self.name, *told, *(["self"] if self.self_condition else [])])

    @model_validator(mode="after")
    def _clip_pixels_alone(self) -> GeneratorConfig:
        if getattr(self.sampler, "clip", False) and self.autoencoder.name != "pixels":
            raise ValueError(
                f"sampler.clip keeps clean data in [-1, 1], which the latents of {self.autoencoder.name} leave: "
                f"set sampler.clip to false"
            )
        return self


class Experiment(Config):
    """One experiment: these images, this encoder, this RDM, this generator."""

    run: Path
    """Folder of the results; default: runs/<name of the file>."""
    seed: NonNegativeInt = 0
    """Seed of weights, data order and draws."""
    data: Annotated[SerializeAsAny[DataConfig], component(DATASETS)]
    """Images."""
    encoder: Annotated[SerializeAsAny[EncoderConfig], component(ENCODERS)]
    """Image -> representation."""
    projection: ProjectionConfig | None = None
    """Representation -> fewer features, before it is normalized; none: all of them."""
    normalize: Literal["per_sample", "per_dataset", "none"] = "per_sample"
    """Representation -> z: standardized over its own features (RCG), each over the data set (DiffAE), or as it is."""
    clusters: PositiveInt | None = None
    """z -> label, for generator.condition: cluster: how many clusters k-means finds among the training images; none:
    ten for each class (100 without classes), at most one for 50 images."""
    rdm: Annotated[SerializeAsAny[RDMConfig], component(NETWORKS, name="rep_mlp")] = unsaid()
    """Noise -> z."""
    generator: Annotated[SerializeAsAny[GeneratorConfig], component(GENERATORS)] | None = None
    """z -> image; an experiment may end with its RDM."""

    def doubts(self) -> Iterator[str]:
        """Yield what is allowed, but hardly meant, each with its section."""
        for section in ("rdm", "generator"):
            model: ModelConfig | None = getattr(self, section)
            yield from () if model is None else (f"{section}.{doubt}" for doubt in model.doubts())

    def to_yaml(self) -> str:
        """Write the resolved experiment as YAML that `load` reads again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load(path: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment from YAML and apply dotted overrides such as `generator.depth=12`.

    Raises:
        UserError: the file is missing or not YAML, or a key or value is not what the schema asks for.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        there = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"there is no configuration {path}; {nearest(str(path), there)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold sections (data, encoder, rdm, generator), not {type(values).__name__}")
    values.setdefault("run", f"runs/{path.stem}")
    for override in overrides:
        _override(values, override)
    return parse(values, str(path))


def parse(values: dict[str, Any], origin: str) -> Experiment:
    """Validate the sections of an experiment; `origin` names their file in messages."""
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{origin}: {'; '.join(_complaints(error))}") from None


def parse_encoder(text: str) -> tuple[EncoderConfig, int | None]:
    """Read an encoder section from a YAML file, an experiment's or the section alone, or from YAML itself.

    Returns:
        The section, and the image size of the experiment where there is one.

    Raises:
        UserError: there is no such file, or it is not an encoder section with weights.
    """
    path = Path(text)
    if path.suffix == ".yaml" and not path.is_file():
        raise UserError(f"there is no file {path} with an encoder section")
    try:
        values = yaml.safe_load(path.read_text() if path.suffix == ".yaml" else text)
    except yaml.YAMLError as error:
        raise UserError(f"{text} is not YAML: {' '.join(str(error).split())}") from None
    values = {"name": values} if isinstance(values, str) else values
    section = values.get("encoder", values) if isinstance(values, dict) else values
    try:
        config = TypeAdapter(Annotated[EncoderConfig, component(ENCODERS)]).validate_python(section)
    except ValidationError as error:
        raise UserError(f"encoder {text}: {'; '.join(_complaints(error))}") from None
    if config.weights is None:
        raise UserError(f"encoder {text} names no weights: say where they are, weights: FILE")
    size = values.get("data", {}).get("image_size") if isinstance(values, dict) else None
    return config, size


def recall(registry: Registry, kind: str, section: Mapping[str, Any]) -> Any:
    """Validate the section that a checkpoint keeps of a part of this kind: the config of the component it names.

    Raises:
        UserError: another version of rcg wrote it, which had other names, keys or values.
    """
    try:
        return registry.get(section["name"]).Config.model_validate(section)
    except ValidationError as error:
        complaints = "; ".join(_complaints(error))
        raise UserError(f"the {kind}'s checkpoint was written by another version of rcg: {complaints}") from None


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield `path: old -> new` for every leaf in which two dumped configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path}: {old} -> {new}"


def _override(values: dict[str, Any], override: str) -> None:
    """Set one dotted key; a new `name` drops the settings that belong to the component named before."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise UserError(f"an override looks like rdm.width=512, not {override!r}")
    section: Any = values
    for depth, key in enumerate(keys[:-1], 1):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise UserError(f"cannot override {dotted}: {'.'.join(keys[:depth])} is {section!r}, not a section")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"the value of override {override!r} is not YAML") from None
    portable = {"encoder": EncoderConfig.portable, "generator": GeneratorConfig.portable}.get(keys[0])
    if portable and keys[1:] == ["name"] and section.get("name") not in (None, value):
        foreign = [key for key in section if key not in portable]
        for key in foreign:
            del section[key]
        if foreign:
            print(f"{override}: left out {section['name']}'s own settings ({', '.join(foreign)})", flush=True)
    section[keys[-1]] = value


def _complaints(error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "unknown_key":
            yield f"{path}.{item['ctx']['key']}: {item['msg']}".lstrip(".")
        elif item["type"] in ("name", "section", "value_error"):
            yield f"{path}: {item['msg'].removeprefix('Value error, ')}"
        elif item["type"] == "missing":
            yield f"{path}: this section or key is required"
        else:
            yield f"{path}: {item['msg'][:1].lower()}{item['msg'][1:]}, got {item['input']!r}"


def describe() -> str:
    """Describe the sections of an experiment for `--help`."""
    lines = ["sections and keys (any of them can follow the file as an override, section.key=value):"]
    known = {
        "data": DATASETS,
        "encoder": ENCODERS,
        "rdm": NETWORKS,
        "generator": GENERATORS,
        "process": PROCESSES,
        "sampler": SAMPLERS,
        "autoencoder": AUTOENCODERS,
    }
    schemas: dict[str, type[Config]] = {
        "": Experiment,
        "data": DataConfig,
        "encoder": EncoderConfig,
        "encoder.train": ContrastiveTrain,
        "encoder.train.augment": AugmentConfig,
        "rdm": RDMConfig,
        "rdm.train": RDMTrain,
        "generator": GeneratorConfig,
        "generator.autoencoder": AutoencoderConfig,
        "generator.autoencoder.train": AutoencoderTrain,
        "generator.guidance": GuidanceConfig,
        "generator.train": TrainConfig,
    }
    for section, schema in schemas.items():
        lines.append(f"\n{section or 'experiment'}: {(schema.__doc__ or '').splitlines()[0]}")
        for key, field in schema.model_fields.items():
            default = "" if field.is_required() or isinstance(field.default, Config | dict) else _written(field.default)
            names = known.get(section.split(".")[-1]) if key == "name" else known.get(key)
            choices = f" One of: {', '.join(names.names())}." if names else ""
            lines.append(f"  {key:19} {_meaning(schema, key)}{choices}{default}")
    lines.append("\nEach component adds keys of its own; its file documents them.")
    return "\n".join(lines)


def _meaning(schema: type[Config], key: str) -> str:
    """Return on one line what a key means; a section that only changes a default leaves that to those it extends."""
    bases = (base for base in schema.__mro__ if issubclass(base, Config))
    fields = (base.model_fields[key] for base in bases if key in base.model_fields)
    return " ".join(next((field.description for field in fields if field.description), "").split())


def _written(default: Any) -> str:
    """Write a default as a person would in YAML."""
    return f" [{default if isinstance(default, str) else json.dumps(default)}]"
