"""The sections of an experiment that several packages share; components extend them beside their classes.

Facts that a neighbor knows (representation width, image shape, class count) are derived, never typed by a person.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, SerializeAsAny, model_validator

from rcg.config.base import (
    ORIGIN,
    OWN,
    RUNTIME,
    Component,
    ComponentConfig,
    Config,
    Depth,
    Fraction,
    ImageSize,
    Steps,
    Width,
    config_class,
)
from rcg.config.training import AutoencoderTrain, ContrastiveTrain, GeneratorTrain, RDMTrain, TrainConfig
from rcg.core.errors import UserError
from rcg.core.registry import AUTOENCODERS, DATASETS, ENCODERS, GENERATORS, NETWORKS, PROCESSES, SAMPLERS

if TYPE_CHECKING:  # torch is not needed to read a configuration, and takes seconds to load
    from torch import Tensor

    from rcg.core.contracts import Level, Net, Noise, Space

MAX_AMPLIFICATION = 2.0**9
"""Above this, a bfloat16 rounding error (2^-9) of the predicted noise is as large as the data. DDPM's linear schedule
has 157."""
MAX_SCALE = 100.0
"""Largest scale of guidance; published ones are below 10."""


class DataConfig(ComponentConfig):
    """Which images to learn from, and how they are cropped."""

    image_size: ImageSize = 32
    """Side of the square images that leave the data set, in pixels."""
    crop: Literal["center", "random"] = "center"
    """Where the square is cropped after the short side was resized to `image_size`."""
    flip: bool = False
    """Mirror every second view."""
    shift: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Largest random translation of every view but the first, as a share of the side: it multiplies small data sets."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest random rotation of every view but the first, in degrees; like `shift` it multiplies small data sets."""
    views: PositiveInt | None = None
    """Views of one image that are encoded and cached; null: 1, times 2 with `flip`, times 4 with random crops,
    `shift` or `rotate`."""
    validation: Annotated[float | None, Field(gt=0, lt=1)] = None
    """Share of the images that are the validation split, at least 4 images; null: the official validation or test
    split where the data set has one, 0.1 where it has none."""
    split_seed: NonNegativeInt = 0
    """Seed of the split."""
    limit: PositiveInt | None = None
    """Use only so many images of a split, drawn at random."""
    num_workers: Annotated[NonNegativeInt | None, RUNTIME] = None
    """Data loader processes; null: chosen from the data set and the machine."""

    @property
    def cached_views(self) -> int:
        """Number of views of one image that are encoded once and cached."""
        moved = self.crop == "random" or self.shift or self.rotate
        return self.views or (2 if self.flip else 1) * (4 if moved else 1)


DataSection = Annotated[SerializeAsAny[DataConfig], Component(DATASETS, DataConfig)]


class EncoderConfig(ComponentConfig):
    """Which frozen encoder defines the representation."""

    weights: Annotated[str | None, ORIGIN, OWN] = None
    """Where the weights come from: a file, `none` for random ones, null: trained into this run by
    tools/train_encoder.py, or by tools/train_pixel.py together with the generator (semantic)."""
    feature: Annotated[Literal["backbone", "projector"], OWN] = "backbone"
    """Which output is the representation."""
    train: Annotated[ContrastiveTrain, ORIGIN] = ContrastiveTrain()
    """Pre-training of encoders without weights."""

    @classmethod
    def presets(cls) -> Sequence[str]:
        """Return the names of ready settings that the key `preset` takes, where there is such a key."""
        return ()


EncoderSection = Annotated[SerializeAsAny[EncoderConfig], Component(ENCODERS, EncoderConfig, presets="timm_model")]


class ProjectionConfig(Config):
    """Principal components of the training set's representations: the width decides how well they can be modeled."""

    width: Width = 256
    """Number of components; RCG's ablation found 256 best (Table 7c)."""
    whiten: bool = False
    """Give all components the same variance."""


class AutoencoderConfig(ComponentConfig):
    """Which frozen autoencoder defines the space in which the generator works."""


AutoencoderSection = Annotated[SerializeAsAny[AutoencoderConfig], Component(AUTOENCODERS, AutoencoderConfig)]


class TrainableAutoencoderConfig(AutoencoderConfig):
    """An autoencoder whose weights come from a file or from tools/train_autoencoder.py."""

    weights: Annotated[str | None, ORIGIN] = None
    """File of its weights, ours or as published; null: trained by tools/train_autoencoder.py into this run."""
    train: Annotated[AutoencoderTrain, ORIGIN] = AutoencoderTrain()
    """Training of an autoencoder without weights."""


class RepresentationAutoencoderConfig(TrainableAutoencoderConfig):
    """An autoencoder whose latents are the patch features of a frozen encoder."""

    encoder: EncoderSection | None = None
    """The encoder; null: that of the experiment."""


class SamplerConfig(ComponentConfig):
    """A sampler: its settings, and callable with a process, a network and noise."""

    discrete: ClassVar[bool] = False
    """Whether it generates tokens."""

    steps: Steps = 50
    """Network evaluations for one sample, without those for guidance."""
    temperature: PositiveFloat = 1.0
    """Scale of all normal noise, applied by `GenerativeModel.sample`; below 1 samples are more typical and less
    diverse."""

    def __call__(self, process: Any, net: Net, space: Space, cond: Tensor | None, noise: Noise) -> Tensor:
        """Generate `(B, *space.shape)` samples; see `rcg.core.contracts.Sampler`."""
        raise NotImplementedError

    def check(self, process: Any) -> None:
        """Raise `UserError` if the sampler cannot visit the levels of `process`."""
        self.levels(process)

    def levels(self, process: Any) -> list[Level]:
        """Return the levels that the sampler visits, noisiest first, and the one at which it ends."""
        raise NotImplementedError

    @property
    def clips(self) -> bool:
        """Whether estimates of clean data are kept in [-1, 1]."""
        return False

    def with_steps(self, steps: int | None) -> Self:
        """Return the sampler with another number of network evaluations; null: as it is.

        Raises:
            UserError: there is none.
        """
        if steps is not None and steps < 1:
            raise UserError(f"a sampler takes at least one step, not {steps}")
        return self if steps is None else self.model_copy(update={"steps": steps})


SamplerSection = Annotated[SerializeAsAny[SamplerConfig], Component(SAMPLERS, SamplerConfig), RUNTIME, OWN]


class ProcessConfig(ComponentConfig):
    """How data is corrupted."""

    discrete: ClassVar[bool] = False
    """Whether it corrupts tokens."""
    times: ClassVar[int] = 1
    """Times that the network gets; see `rcg.core.contracts.Interface`."""

    def for_data(self, data: Space) -> Self:
        """Return the process for data of a space, with whatever follows its shape; by default nothing does."""
        return self

    @property
    def amplification(self) -> float:
        """Factor from an error of the network to the error of clean data that it implies, at the noisiest level."""
        return 1.0

    @property
    def learns_variance(self) -> bool:
        """Whether the network predicts the variance of a step as well."""
        return False


ProcessSection = Annotated[SerializeAsAny[ProcessConfig], Component(PROCESSES, ProcessConfig), OWN]


class GuidanceConfig(Config):
    """Guidance away from a worse prediction, limited to an interval (Kynkäänniemi et al., 2024)."""

    scale: Annotated[float, Field(ge=0, le=MAX_SCALE)] = 1.0
    """worse + scale * (better - worse); 1: no guidance."""
    against: Literal["early_exit"] | None = None
    """What the worse prediction is. null: that for the null condition, by a second evaluation (classifier-free
    guidance; Ho and Salimans, 2022). early_exit: that of the network's own early exit for the same condition, or for
    none; it costs no evaluation (internal guidance; Zhou et al., 2025), and loses less variety."""
    interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Part of the noise time, from 0 (clean data) to 1 (pure noise), in which guidance acts."""
    ramp: Literal["constant", "linear", "cosine"] = "constant"
    """How guidance grows from none at noise to `scale` at the last step: at once, linearly (RCG's MAGE), or as half a
    cosine."""
    channels: Width | None = None
    """Guide only so many channels, the first ones; null: all. The published DiT guides three of four."""

    @model_validator(mode="after")
    def _refuse_falling_interval(self) -> Self:
        low, high = self.interval
        if low > high:
            raise ValueError(f"interval must rise from low to high, not [{low:g}, {high:g}]: [{high:g}, {low:g}] does")
        return self

    def with_scale(self, scale: float | None) -> Self:
        """Return the guidance at another scale; null: as it is.

        Raises:
            UserError: the scale is out of range.
        """
        if scale is None:
            return self
        if not 0 <= scale <= MAX_SCALE:
            raise UserError(f"a scale of guidance lies between 0 and {MAX_SCALE:g}, not at {scale:g}")
        return self.model_copy(update={"scale": float(scale)})


class ModelConfig(ComponentConfig):
    """A network times a process, given a condition."""

    defaults = {"process": {"name": "gaussian"}, "sampler": {"name": "ddim"}}

    condition: Literal["none", "class", "cluster", "vector", "representation"] = "none"
    """What the model is conditioned on."""
    condition_dropout: Fraction = 0.1
    """Share of training samples whose condition is replaced by the learned null (guidance needs it)."""
    condition_noise: Annotated[float, Field(ge=0)] = 0.0
    """Std of noise added to representations in training: a generator that cannot tell which training image it is
    conditioned on memorizes less, and forgives an RDM its errors."""
    self_condition: bool = False
    """Show the network its previous estimate of the clean data (Analog Bits; Chen, Zhang, Hinton, ICLR 2023)."""
    process: ProcessSection
    """How data is corrupted and what the network predicts."""
    sampler: SamplerSection
    """How samples are generated."""
    guidance: Annotated[GuidanceConfig, RUNTIME, OWN] = GuidanceConfig()
    """Guidance in sampling."""
    train: Annotated[TrainConfig, ORIGIN] = TrainConfig()
    """Training."""

    @property
    def requirements(self) -> set[str]:
        """Capabilities that the network needs for this config; see `rcg.core.contracts.Denoiser`."""
        return {"self_condition"} if self.self_condition else set()

    @property
    def exit_weight(self) -> float | None:
        """Weight of the losses of the network's early exit; None: it has none."""
        return None

    @property
    def is_guidable(self) -> bool:
        """Whether guidance has something to lead away from: a null condition, or an early exit."""
        return self.condition != "none" or self.guidance.against == "early_exit"

    def lacks_null(self, guidance: GuidanceConfig) -> bool:
        """Whether guidance would start from the null condition, and that was never trained."""
        leads_from_null = guidance.against is None and self.condition != "none"
        return guidance.scale != 1 and leads_from_null and self.condition_dropout == 0

    def check_guidance(self, guidance: GuidanceConfig, allow_untrained_null: bool) -> None:
        """Raise `UserError` if guidance leads away from what is not there.

        That is an early exit, or a null condition that was never trained, unless `allow_untrained_null`.
        """
        if guidance.against == "early_exit" and self.exit_weight is None:
            raise UserError(_lacks_exit(self.name))
        if self.lacks_null(guidance) and not allow_untrained_null:
            raise UserError(
                f"guidance of {guidance.scale:g} starts from the null condition of {self.name}, which was never "
                f"trained (condition_dropout 0): sample at a scale of 1, train with condition_dropout=0.1, or insist "
                f"with --allow-untrained-null"
            )

    @model_validator(mode="after")
    def _match_sampler_and_process(self) -> ModelConfig:
        if self.process.discrete != self.sampler.discrete:
            known = [name for name in SAMPLERS.names() if _is_discrete(name) == self.process.discrete]
            raise ValueError(
                f"the sampler {self.sampler.name} cannot reverse the process {self.process.name}; those that can: "
                f"{', '.join(known)}"
            )
        return self

    @model_validator(mode="after")
    def _refuse_estimates_beside_two_times(self) -> ModelConfig:
        if self.self_condition and self.process.times > 1:
            raise ValueError(
                f"self_condition shows the network an estimate of the step before, but the process {self.process.name} "
                f"is made for a single step: set self_condition to false"
            )
        return self

    @model_validator(mode="after")
    def _refuse_self_conditioning_of_one(self) -> ModelConfig:
        if self.self_condition and self.train.micro_batch_size < 2:
            raise ValueError(
                f"self_condition shows every second sample an estimate, but train has micro-batches of one: choose a "
                f"train.batch_size of at least {2 * self.train.grad_accum_steps}, or self_condition: false"
            )
        return self

    @model_validator(mode="after")
    def _require_early_exit(self) -> ModelConfig:
        if self.guidance.against == "early_exit" and self.exit_weight is None:
            raise ValueError(_lacks_exit(self.name))
        return self

    def warnings(self) -> Iterator[str]:
        """Yield warnings about valid but probably unintended settings."""
        if self.lacks_null(self.guidance):
            yield (
                f"guidance.scale is {self.guidance.scale:g}, but condition_dropout is 0, so the null condition that "
                f"guidance leads away from is never trained: set condition_dropout to 0.1, or guidance.scale to 1"
            )
        if self.process.amplification > MAX_AMPLIFICATION and not self.sampler.clips:
            yield (
                f"process: at the noisiest level an error of the predicted noise is {self.process.amplification:.3g} "
                f"times as large in clean data, and {self.sampler.name} with {self.sampler.steps} steps starts "
                f"there: choose predict: v or x0, or schedule: linear with 1000 levels"
            )


def _lacks_exit(name: str) -> str:
    return (
        f"guidance.against is early_exit, but {name} has none: set it to null, for the null condition, or train a "
        f"generator with early_exit: {{block: 4}}"
    )


def _is_discrete(sampler: str) -> bool:
    schema: Any = config_class(SAMPLERS, sampler)
    return bool(schema.discrete)


class RDMConfig(ModelConfig):
    """The representation diffusion model (RDM).

    It was published with process: {schedule: sqrt_linear, predict: x0} and 250 steps of ddim at eta 1; the defaults
    came closer to real representations, in fewer steps (docs/benchmarks.md).
    """

    defaults = {
        "process": {"name": "gaussian", "schedule": "cosine", "predict": "v"},
        "sampler": {"name": "unipc", "steps": 16},
    }

    condition: Literal["none", "class", "cluster", "vector"] = "none"
    """What the RDM is conditioned on: nothing, the label, the cluster of z (then guidance needs no labels: Self-Guided
    Diffusion Models; Hu et al., CVPR 2023), or a precomputed vector (a text embedding, say)."""
    vectors: Path | None = None
    """Where condition is vector: a safetensors file with a tensor `vectors` `(N, D)`, one row per image of the data
    set, in its order."""
    process: ProcessSection
    """How representations are corrupted and what the network predicts; by default v on the cosine schedule, for which
    eps prediction is unsuitable: its last level is all but pure noise."""
    sampler: SamplerSection
    """How representations are generated; by default 16 steps of unipc."""
    train: RDMTrain = RDMTrain()

    @model_validator(mode="after")
    def _match_vectors_and_condition(self) -> RDMConfig:
        if (self.condition == "vector") != (self.vectors is not None):
            raise ValueError("vectors names the file for condition: vector; give both of them, or neither")
        return self


RDMSection = Annotated[SerializeAsAny[RDMConfig], Component(NETWORKS, RDMConfig)]


class AlignConfig(Config):
    """Representation alignment (REPA; Yu et al., ICLR 2025): hidden tokens learn the frozen encoder's patch tokens.

    It pays most with a strong encoder, early in training. A step evaluates the encoder once more, and a projection of
    the tokens at each depth.
    """

    depth: Depth | Annotated[tuple[Depth, ...], Field(min_length=1)] = 8
    """Number of blocks after which the tokens are compared, or several: [2, 4, 6]. A U-Net's are those of its way down,
    each a residual block or a halving of the side, and its middle, the last."""
    weight: PositiveFloat = 0.5
    """Weight of the loss beside that of the process."""
    hidden: Width = 2048
    """Hidden width of the projection; each depth has its own."""

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths, one or several, rising."""
        return (self.depth,) if isinstance(self.depth, int) else tuple(sorted(self.depth))

    @model_validator(mode="after")
    def _refuse_repeated_depths(self) -> Self:
        if len(set(self.depths)) < len(self.depths):
            raise ValueError(f"depth names a block twice: {list(self.depths)}")
        return self

    def check_depths(self, count: int) -> None:
        """Raise `UserError` if a network of `count` blocks lacks one of those depths."""
        beyond = [depth for depth in self.depths if depth > count]
        if beyond:
            raise UserError(f"generator.align.depth is {beyond[0]}, but there are {count} blocks: choose one of those")


class PerceptualConfig(Config):
    """A perceptual loss of the estimate of the clean image, in a frozen encoder's features (PixelGen; Ma et al., 2026).

    It pays where images are soft: a squared error asks for no texture. A step costs three passes of the encoder more,
    for the images with little noise. Images that please an encoder prove nothing to it: evaluate with another one.
    """

    weight: PositiveFloat = 1.0
    """Size of its gradient at the network's output, where that of the process's loss is 1, for each image."""
    until: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Largest share of noise, sigma / (alpha + sigma), at which images are compared: a flow's time, and one minus
    PixelGen's."""
    encoder: str = "own"
    """Which encoder: `own`, the experiment's, or a YAML file with an encoder section that names its weights."""


class EarlyExitConfig(Config):
    """A second output in the middle of a network, which learns the same as the last one and stays worse."""

    block: Depth = 4
    """Number of the block after which it reads the tokens; RAEv2 has 8 of 28."""
    weight: PositiveFloat = 1.0
    """Weight of its loss beside that of the last output."""


class GeneratorConfig(ModelConfig):
    """A pixel generator: it generates an image from a representation, a label, or nothing."""

    defaults = {"autoencoder": {"name": "pixels"}}

    condition: Literal["none", "class", "cluster", "representation"] = "representation"
    """What the generator is conditioned on: nothing, the label, the cluster of the representation, or all of it."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass instead of storing them: less memory, a third more time."""
    align: Annotated[AlignConfig | None, OWN] = None
    """Representation alignment in training; null: without."""
    perceptual: Annotated[PerceptualConfig | None, OWN] = None
    """Perceptual loss in training, for generators of pixels; null: without."""
    early_exit: Annotated[EarlyExitConfig | None, OWN] = None
    """A worse answer from the middle of the network, for guidance.against early_exit; about 1 % of a step (Guiding a
    Diffusion Transformer with the Internal Dynamics of Itself; Zhou et al., 2025). null: without."""
    joint_representation: Annotated[bool, OWN] = False
    """Generate the representation together with the image, from noise, as one more token (REG; Wu et al., 2025): no
    RDM is needed. It costs one token; it is the rival of a representation that the RDM generates first."""
    joint_weight: Annotated[PositiveFloat, OWN] = 0.03
    """Weight of the representation's loss beside that of the image, where both are generated together (REG's)."""
    autoencoder: Annotated[AutoencoderSection, OWN]
    """The space in which the generator works."""
    train: GeneratorTrain = GeneratorTrain()
    """Training."""

    @property
    def requirements(self) -> set[str]:
        """Capabilities that the network needs for this config; see `rcg.core.contracts.Denoiser`."""
        asked = {
            "grad_checkpointing": self.grad_checkpointing,
            "align": self.align is not None,
            "early_exit": self.early_exit is not None,
            "joint_representation": self.joint_representation,
        }
        return super().requirements | {name for name, needed in asked.items() if needed}

    @property
    def exit_weight(self) -> float | None:
        """Weight of the losses of the network's early exit; None: it has none."""
        return None if self.early_exit is None else self.early_exit.weight

    @property
    def folder_name(self) -> str:
        """Name of its folder in a run: its own, its condition if not a representation, self if self-conditioned.

        Where the representation is generated with the image, joint stands in the place of the condition.
        """
        words = [self.name]
        if self.joint_representation:
            words.append("joint")
        elif self.condition != "representation":
            words.append(self.condition)
        if self.self_condition:
            words.append("self")
        return "-".join(words)

    @model_validator(mode="after")
    def _refuse_clipped_latents(self) -> GeneratorConfig:
        if self.sampler.clips and self.autoencoder.name != "pixels":
            raise ValueError(
                f"sampler.clip keeps clean data in [-1, 1], which the latents of {self.autoencoder.name} leave: "
                f"set sampler.clip to false"
            )
        return self

    @model_validator(mode="after")
    def _refuse_spans(self) -> GeneratorConfig:
        for key in ("perceptual", "early_exit"):
            if getattr(self, key) is not None and self.process.times > 1:
                raise ValueError(
                    f"{key} needs estimates of clean data, but the process {self.process.name} predicts means over "
                    f"spans of time: leave {key} out, or choose the process flow or gaussian"
                )
        return self

    @model_validator(mode="after")
    def _refuse_perceptual_latents(self) -> GeneratorConfig:
        if self.perceptual is not None and self.autoencoder.name != "pixels":
            raise ValueError(
                f"perceptual compares images, but with the autoencoder {self.autoencoder.name} a generator estimates "
                f"latents or tokens: leave perceptual out, or set autoencoder to pixels"
            )
        return self

    @model_validator(mode="after")
    def _refuse_to_stop_by_what_is_pleased(self) -> GeneratorConfig:
        if self.perceptual is not None and self.perceptual.encoder == "own" and self.train.score == "fd":
            raise ValueError(
                "train.score is fd, which is measured by the encoder that perceptual learns to please: set score to "
                "loss, or name another perceptual.encoder"
            )
        return self

    @property
    def joint_obstacle(self) -> str | None:
        """What of this section keeps it from generating the representation together with the image; None: nothing."""
        if self.condition != "none":
            return (
                f"condition is {self.condition}, but where the representation is generated together with the image, "
                f"nothing is left to be conditioned on: set condition to none"
            )
        if self.process.discrete:
            return f"{self.name} generates tokens, but joint_representation needs real numbers: choose dit"
        if self.process.times > 1:
            return f"the process {self.process.name} measures no parts of its data: choose flow or gaussian"
        if self.process.learns_variance:
            return (
                "process.variance is learned_range, which is learned from the likelihood of pixels, and "
                "a representation has none: set process.variance to fixed_small"
            )
        if self.sampler.clips:
            return "sampler.clip keeps clean data in [-1, 1], which a representation leaves: set sampler.clip to false"
        if self.guidance.channels is not None:
            return (
                "guidance.channels counts the channels of an image, which lies in one vector with its representation: "
                "set guidance.channels to null"
            )
        for key in ("early_exit", "perceptual"):
            if getattr(self, key) is not None:
                return f"{key} knows of the image alone: leave {key} out"
        return None

    @model_validator(mode="after")
    def _refuse_obstacles_of_joint_sampling(self) -> GeneratorConfig:
        if self.joint_representation and self.joint_obstacle is not None:
            raise ValueError(f"joint_representation is true, and {self.joint_obstacle}")
        return self


GeneratorSection = Annotated[SerializeAsAny[GeneratorConfig], Component(GENERATORS, GeneratorConfig)]
