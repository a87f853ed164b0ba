"""How trainings run: the one loop, and what each kind of training adds to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from rcg.config.base import RUNTIME, Batch, Config, Fraction, Side, Width

DECAY = 0.2
"""Share of the steps in which schedule: wsd ends, if none is given."""


class TrainConfig(Config):
    """How the one training loop runs."""

    exclusive = {"steps": "epochs", "epochs": "steps"}

    steps: Annotated[NonNegativeInt, RUNTIME] = 10_000
    """Optimizer steps."""
    epochs: Annotated[float | None, Field(gt=0, le=1e6), RUNTIME] = None
    """Passes over the training images, instead of `steps`; null: as many as `steps` take."""
    batch_size: Batch = 64
    """Samples of one optimizer step, over all processes and accumulated micro-batches."""
    grad_accum_steps: Batch = 1
    """Micro-batches of one optimizer step; batch normalization and contrast see one at a time."""
    init_from: str | None = None
    """Where the weights come from that training starts with: a part of ours, or a run; null: random ones. What does not
    fit, such as the embedding of another condition, starts at random."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for RDMs and generators: Muon (Jordan et al., 2024) for the matrices inside blocks, whose steps it
    makes orthogonal and as large as AdamW's (Liu et al., 2025), and AdamW for all else. It costs fifteen products of
    small matrices for each matrix and step, whatever the batch: little where a step sees thousands of tokens, several
    times the step itself in an RDM. They are made in bf16, which is slow on CPUs that do not compute it natively."""
    lr: Annotated[PositiveFloat, RUNTIME] = 1e-4
    """Peak learning rate."""
    muon_lr: Annotated[PositiveFloat | None, RUNTIME] = None
    """Peak learning rate of what Muon trains; null: `lr`, as its steps are as large as AdamW's."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's averaging coefficients."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay, on matrices only unless `decay_all`."""
    decay_all: bool = False
    """Decay biases and normalization weights too, as the published RDM does."""
    warmup: NonNegativeInt = 0
    """Steps of linear learning-rate warm-up."""
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """Learning rate after the warm-up: constant; half a cosine to zero at the last step; or wsd (warmup, stable, decay;
    Hu et al., 2024), constant and then linear to zero over the last part, `decay`. A run by wsd can be made longer: the
    state before the decay is kept, and --resume with more `steps` goes on from there, as if it had been planned so long
    from the start; only the steps of the decay are taken again. A cosine that is stretched jumps instead."""
    decay: Annotated[float, Field(gt=0, le=1)] = DECAY
    """Last part of the steps, as a share, over which schedule: wsd lets the learning rate fall to zero."""
    grad_clip: Annotated[PositiveFloat | None, RUNTIME] = None
    """Largest gradient norm; null: no clipping."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.9999
    """Decay of the weights' moving average (with warm-up); null: keep the live weights."""
    snapshot: Annotated[float | None, Field(gt=0, lt=1), RUNTIME] = None
    """Share of the steps after which the averaged model is kept beside the final one, in snapshot.safetensors: a worse
    self to guide away from (--weak snapshot; Karras et al., NeurIPS 2024, with 1/16). It takes the disk space of a
    model, and no time; null: none. For RDMs and generators."""
    precision: Annotated[Literal["auto", "no", "bf16", "fp16"], RUNTIME] = "auto"
    """Mixed precision; auto: bf16 where the device computes it natively, else none."""
    compile: bool = False
    """Compile the network with `torch.compile`."""
    log_every: Annotated[PositiveInt, RUNTIME] = 50
    """Steps between two lines of the log."""
    evaluate_every: Annotated[PositiveInt | None, RUNTIME] = None
    """Steps between two evaluations (metrics, sample grid); null: at the end only."""
    patience: Annotated[PositiveInt | None, RUNTIME] = None
    """Evaluations without a better score, after which training ends; the best model is kept. The score is the loss on
    validation images; of an RDM, the rep-FD; of an encoder, its error by neighbors, or without labels alignment plus
    uniformity."""
    save_every: Annotated[PositiveInt, RUNTIME] = 1000
    """Steps between two checkpoints."""
    tracker: Annotated[str, RUNTIME] = "tensorboard"
    """Where curves, pictures and the configuration are sent: tensorboard, wandb, mlflow, comet_ml, trackio or another
    tracker that accelerate knows, or `none`; `log.jsonl` is always written."""

    @model_validator(mode="after")
    def _choose_steps_or_epochs(self) -> Self:
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError(
                "steps and epochs both say how long to train: leave one of them out, or set epochs to null"
            )
        return self

    @model_validator(mode="after")
    def _refuse_decay_without_wsd(self) -> Self:
        if self.decay != DECAY and self.schedule != "wsd":
            raise ValueError("decay is the last part of schedule: wsd: set that, or leave decay out")
        return self

    @model_validator(mode="after")
    def _refuse_muon_lr_without_muon(self) -> Self:
        if self.muon_lr is not None and self.optimizer != "muon":
            raise ValueError("muon_lr is the learning rate of optimizer: muon: set that, or leave muon_lr out")
        return self

    @model_validator(mode="after")
    def _refuse_patience_that_cannot_be(self) -> Self:
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError("patience counts evaluations, and there is only one, at the end: set evaluate_every")
        if self.patience is not None and self.schedule == "wsd":
            raise ValueError(
                "patience ends a training before schedule: wsd lets its rate fall: choose another schedule"
            )
        return self

    @model_serializer(mode="wrap")
    def _leave_out_computed_steps(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if self.epochs is not None:
            values.pop("steps", None)
        return values

    @property
    def snapshot_step(self) -> int | None:
        """The step after which the snapshot is kept; None: there is none."""
        return None if self.snapshot is None else max(1, round(self.snapshot * self.steps))

    @property
    def decay_start(self) -> int | None:
        """Steps before the learning rate falls by schedule: wsd; None: it has another schedule."""
        return self.steps - max(1, round(self.decay * self.steps)) if self.schedule == "wsd" else None

    @property
    def micro_batch_size(self) -> int:
        """Samples of a micro-batch, over all processes."""
        return self.batch_size // self.grad_accum_steps


def trainings(config: Config) -> Iterator[TrainConfig]:
    """Yield the trainings in a configuration."""
    if isinstance(config, TrainConfig):
        yield config
    for _, value in config:
        if isinstance(value, Config):
            yield from trainings(value)


C = TypeVar("C", bound=Config)


def resolve_epochs(config: C, images: int) -> C:
    """Return a configuration whose trainings know their steps, also where epochs of so many images are asked for."""
    update: dict[str, Any] = {key: resolve_epochs(value, images) for key, value in config if isinstance(value, Config)}
    if isinstance(config, TrainConfig) and config.epochs is not None:
        update["steps"] = max(1, round(config.epochs * images / config.batch_size))
    return config.model_copy(update=update)


class AugmentConfig(Config):
    """Random views for contrastive pre-training (torchvision v2); what is left out follows the image size."""

    recipe: Literal["symmetric", "moco_v3"] = "symmetric"
    """What `crop`, `blur` and `solarize` are where they are left out. symmetric: both views alike, half of them blurred
    from 64 px on, none solarized, which small images do not survive: at 16 px a blur leaves nothing to compare.
    moco_v3: as its authors do (and BYOL before them), the first view always blurred, the second on 10 % of images, and
    then solarized on 20 %, crops from 8 % of the area; they give ResNet-50 crop: [0.2, 1]."""
    size: Side | None = None
    """Side of the views in pixels; null: that of the images. A ResNet learns faster, and no worse, from views of three
    quarters of it, because random crops magnify what they show (Touvron et al., NeurIPS 2019)."""
    crop: tuple[Fraction, Fraction] | None = None
    """Range of the crop's share of the area; null: (0.2, 1), from 64 px or by the recipe moco_v3 (0.08, 1)."""
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
    blur: Fraction | tuple[Fraction, Fraction] | None = None
    """Share of blurred views, or of first and of second ones; null: as the recipe has it."""
    solarize: Fraction | tuple[Fraction, Fraction] | None = None
    """Share of views whose bright half is inverted, or of first and of second ones; null: as the recipe has it."""
    erase: Fraction = 0.0
    """Share of views with a random rectangle erased."""


class ContrastiveTrain(TrainConfig):
    """MoCo v3 pre-training (Chen, Xie, He, ICCV 2021)."""

    batch_size: Batch = 256
    optimizer: Literal["adamw"] = "adamw"
    snapshot: None = None
    lr: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: NonNegativeInt = 100
    schedule: Literal["constant", "cosine", "wsd"] = "cosine"
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    temperature: PositiveFloat = 0.2
    """Temperature of the InfoNCE loss."""
    momentum: Fraction = 0.99
    """Momentum of the key encoder at the start; it rises to 1 by half a cosine."""
    predictor: Width = 1024
    """Hidden width of the predictor; 4096 as published."""
    predictor_norm: bool = True
    """Whether the predictor ends with batch normalization: published for ViTs, but not for ResNets."""
    augment: AugmentConfig = AugmentConfig()
    """The two views."""

    @model_validator(mode="after")
    def _refuse_single_images(self) -> Self:
        if self.micro_batch_size < 2:
            raise ValueError(
                f"contrast needs other images in a micro-batch, which has {self.micro_batch_size}: choose "
                f"a batch_size of at least {2 * self.grad_accum_steps}, twice grad_accum_steps"
            )
        return self


class LatentAlignConfig(Config):
    """Alignment of an autoencoder's latents with the frozen encoder's patch features (VA-VAE; Yao et al., CVPR 2025).

    Generators learn such latents faster; images come back a little worse. A step evaluates the encoder once more.
    """

    weight: PositiveFloat = 0.5
    """Weight of the loss, the mean negative cosine, beside that of pixels."""
    hidden: Width | None = None
    """Hidden width of the projection of the latents; null: a linear map, as published."""


class AutoencoderTrain(TrainConfig):
    """Training of an autoencoder by pixels, features and a discriminator (VQGAN, Esser et al., CVPR 2021)."""

    steps: NonNegativeInt = 100_000
    optimizer: Literal["adamw"] = "adamw"
    snapshot: None = None
    lr: PositiveFloat = 2e-4
    betas: tuple[Fraction, Fraction] = (0.5, 0.9)
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.999
    pixel: Literal["l1", "l2"] = "l1"
    """Distance of pixels."""
    decoder_only: bool = False
    """Train nothing but the decoder of `init_from`: its tokens or latents, and generators of them, stay as they are."""
    decoder_noise: Annotated[float, Field(ge=0)] = 0.0
    """Noise of what the decoder learns from, so that it forgives a generator its errors, while real latents come back a
    little less sharp; 0: none. Each image draws its amount from |N(0, decoder_noise)|: of latents, the std in units of
    theirs (RAE; Zheng et al., 2025: 0.8), of tokens, the share that is replaced by random ones."""
    align: LatentAlignConfig | None = None
    """Alignment of the latents, or of the grid that is quantized, with the encoder's patch features; null: without."""
    perceptual: Literal["encoder", "vgg", "none"] = "encoder"
    """Whose features are compared too: those of the experiment's encoder, or of torchvision's VGG-16 as in LPIPS."""
    perceptual_weight: PositiveFloat = 1.0
    """Weight of the perceptual loss."""
    vgg: str | None = None
    """File of VGG-16's weights; null: the one in torch's cache."""
    adversarial: Annotated[float, Field(ge=0)] = 0.8
    """Weight of the patch discriminator's verdict, before it is adapted (VQGAN, eq. 7); 0: no discriminator."""
    adversarial_start: NonNegativeInt = 20_000
    """Step at which the discriminator comes in."""
    discriminator_width: Width = 64
    """Channels of the discriminator's first layer."""
    inception: str | None = None
    """File of torch-fidelity's InceptionV3 for the rFID of evaluations; null: rFID is not reported."""
    inception_tap: Literal["64", "192", "768", "2048"] = "2048"
    """Which of its layers; only 2048 is comparable with published figures."""

    @model_validator(mode="after")
    def _require_init_from(self) -> AutoencoderTrain:
        if self.decoder_only and self.init_from is None:
            raise ValueError(
                "decoder_only trains the decoder of an autoencoder that is there: name its file in init_from"
            )
        return self

    @model_validator(mode="after")
    def _refuse_to_align_fixed_latents(self) -> AutoencoderTrain:
        if self.decoder_only and self.align is not None:
            raise ValueError(
                "align changes the latents, which decoder_only keeps as they are: leave out one of the two"
            )
        return self


class GeneratorTrain(TrainConfig):
    """Training of a pixel generator, with what its evaluations judge."""

    judged_samples: Annotated[NonNegativeInt, RUNTIME] = 512
    """Most samples that an evaluation judges: their Frechet distance to training images (`fd`), as of infinitely many
    samples, what it will probably be at the end (`fd_at_end`), and the share of copies of training images. 0: none.
    They are fewer where validation images are, and where they would take more than a twentieth of the network
    evaluations since the last evaluation."""
    judge: Annotated[str | None, RUNTIME] = None
    """A second encoder in whose space the distance is measured too (`fd_judge`): a YAML file with an encoder section,
    or YAML, as tools/evaluate.py takes it by --encoder. It sees all training images once. null: none."""
    score: Annotated[Literal["loss", "fd"], RUNTIME] = "loss"
    """What `patience` looks at: the loss on validation images, or the Frechet distance, which is noisier."""

    @model_validator(mode="after")
    def _require_judged_samples(self) -> Self:
        if self.judged_samples == 0 and (self.judge is not None or self.score == "fd"):
            key = "judge" if self.judge is not None else "score: fd"
            raise ValueError(f"{key} needs samples to judge, but judged_samples is 0: set it to 512, say")
        return self


class RDMTrain(TrainConfig):
    """The published recipe of the RDM (RCG, Table 5) apart from its length."""

    batch_size: Batch = 512
    lr: PositiveFloat = 5.12e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    decay_all: bool = True
