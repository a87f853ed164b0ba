"""The contracts between components: spaces, and the base classes and protocols that exchange tensors in them.

In shapes, B is the batch and `*S` the shape of one element, `Space.shape`: `(C, h, w)`, `(D,)` or `(h, w)`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeVar

from torch import Tensor, nn

from rcg.core.errors import UserError

Net = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A denoising function `net(x, t, cond) -> (B, outputs, *S)`: networks, EMA copies, guided networks.

Times t are `(B,)`, or `(B, 2)` where `Interface.times` is 2. For tokens it returns logits `(B, outputs, K, *S)`.
"""

MASK = -1
"""The value of an unknown token."""
EARLY = "early_"
"""What the names of the losses of an early exit begin with."""

Estimate = TypeVar("Estimate", covariant=True)
"""The estimate of clean data that a process reads off a network's output."""


@dataclass(frozen=True)
class Space:
    """A set of tensors that two components agree on.

    Attributes:
        shape: shape of one element without the batch: `(D,)` vectors, `(C, h, w)` latents, `(h, w)` tokens, `()` label.
        vocab: number of symbols when elements are integers, `None` for real-valued elements.
        id: who defines the coordinates; two spaces of equal shape and different id do not fit together.
    """

    shape: tuple[int, ...]
    vocab: int | None = None
    id: str = ""

    def __str__(self) -> str:
        """Return who defines the space, and its shape."""
        return f"{self.id or 'labels'} {self.shape}"


class Interface(NamedTuple):
    """A network's neighbors; derived from them, never typed by a person.

    Attributes:
        data: the space in which the network denoises.
        cond: the space of its condition; a label space has one more row for the null label; None: no condition.
        outputs: network outputs per data element: the first is the prediction; with a learned variance a second, in
            [-1, 1] (`rcg/diffusion/processes/gaussian.py`).
        inputs: tensors that come side by side, along dimension 1: 1, x alone; 2 with self-conditioning, x and then the
            last estimate of clean data (zeros, or `MASK`, where there is none yet).
        times: 1; 2 where the prediction is a mean over a span of time: the time, and how far the span reaches down.
        z: the space of the representation that it denoises together with the data; None: the data alone. Then inputs
            and outputs are vectors of an `rcg.diffusion.joint_representation.Pair`: `(B, inputs * (n + D))` and
            `(B, outputs, n + D)`.
    """

    data: Space
    cond: Space | None = None
    outputs: int = 1
    inputs: int = 1
    times: int = 1
    z: Space | None = None


class Denoiser(nn.Module):
    """Base class of all networks: subclass it, set `Config`, and implement `forward`.

    Attributes:
        Config: the schema of its section in YAML.
        capabilities: what it can do beyond that, some of
            `self_condition`: it takes x and an estimate of clean data side by side, `interface.inputs` of them;
            `two_times`: it takes as many times as `interface.times` says (`rcg.nn.TimeEmbedding`);
            `grad_checkpointing`: it can recompute activations (`rcg.nn.checkpointed`) where its config says so;
            `align`: in training it leaves the tokens to be aligned in `features`, and says their `feature_widths`;
            `h_space`: it has a `bottleneck`, the module whose output is the h-space;
            `early_exit`: where its config asks for it, as many outputs of an early exit, a worse answer, come second;
            `joint_representation`: it can denoise a representation together with the data (`Interface.z`).
        features: tokens `(B, N, C)` of square grids after each of `config.align.depths`, until they are taken.
    """

    Config: ClassVar[Any]
    capabilities: ClassVar[frozenset[str]] = frozenset()
    features: Sequence[Tensor] = ()

    def __init__(self, config: Any, interface: Interface) -> None:
        """Build the network of `config` between its neighbors."""
        super().__init__()

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Denoise.

        Args:
            x: noisy data `(B, inputs * C, ...)`, or tokens `(B, inputs * h, w)` with `MASK` where they are unknown.
            t: times `(B,)` in [0, process.horizon]; of a network with two, `(B, 2)`.
            cond: vectors `(B, D)`, labels `(B,)`, or None.

        Returns:
            `(B, outputs, C, ...)`, or logits `(B, outputs, K, h, w)` of tokens.
        """
        raise NotImplementedError

    @property
    def feature_widths(self) -> Sequence[int]:
        """Channels C of the tokens at each of `config.align.depths`."""
        return ()

    def take_features(self) -> Sequence[Tensor]:
        """Return the `features` of the last evaluation in training, and let go of them."""
        features, self.features = self.features, ()
        return features

    def bottleneck(self, block: int | None = None) -> nn.Module:
        """Return the module whose output, or first output, h is the h-space: maps `(B, C, h, w)`, tokens `(B, N, C)`.

        Args:
            block: the number of a block, from 1 on, in a network of equal blocks; None: the middle one.

        Raises:
            UserError: there is no h-space, or no such block.
        """
        raise UserError(f"{type(self).__name__} has no h-space: use dit, adm or ldm")

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights that `train.optimizer: muon` trains by Muon: linear maps and convolutions inside blocks.

        All else (embeddings, what modulates by the time or the condition, the output) is left to AdamW.

        Raises:
            UserError: the network does not say which.
        """
        raise UserError(
            f"{type(self).__name__} does not say which of its matrices lie inside blocks (hidden_matrices), as muon "
            f"has to know: set train.optimizer=adamw"
        )


class Prediction(NamedTuple):
    """A prediction of a Gaussian or flow process, read off a network's output; tensors are `(B, *S)`.

    The log-variance of a random step back lies between two bounds, which depend on where the step ends;
    `variance_share` places it between them: 0 is the variance of the posterior q(x_s | x_t, x_0), 1 is beta (Nichol and
    Dhariwal, 2021, eq. 15).
    """

    x0: Tensor
    eps: Tensor
    variance_share: Tensor | float = 0.0


class CatalogEntry(NamedTuple):
    """An encoder that a person may choose, as tools/list_encoders.py lists it; `weights` says where they are."""

    name: str
    width: int
    side: int | None
    millions: int
    license: str
    weights: str


class Encoder(nn.Module):
    """Base class of image encoders: subclass it, set `Config` and `width`, and implement `forward`.

    `rcg.encoding.representation.Representation` freezes it.

    Attributes:
        Config: the schema of its section in YAML, an `EncoderConfig`.
        trainable: whether tools/train_encoder.py can pre-train it; then it implements `project`.
        joint: whether tools/train_pixel.py trains it together with the generator that is conditioned on it.
        config: its section.
        width: D of the representation.
        side: side of the square that the network sees, in pixels; None: that of the images.
        grid: rows and columns of `tokens`; None: it has no patch features.
        license: license of its weights, empty where there is none.
    """

    Config: ClassVar[Any]
    trainable: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    config: Any
    width: int
    side: int | None = None
    grid: tuple[int, int] | None = None
    license: str = ""

    def __init__(self, config: Any, image_size: int, load: bool = True) -> None:
        """Build the encoder of `config` for images of `image_size` pixels; load the weights that it names if asked."""
        super().__init__()
        self.config = config

    def forward(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to representations `(B, width)`."""
        raise NotImplementedError

    def patch_features(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to patch features `(B, N, D')`; raises `UserError` without a grid."""
        raise UserError(f"the encoder {self.config.name} has no features on a grid")

    def drop_head(self) -> None:
        """Leave out the weights that `patch_features` does not need; by default there are none."""
        return

    def rename(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a published file under our names; by default they have these."""
        return tensors

    def project(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1], with gradients, to what contrastive pre-training compares, `(B, P)`."""
        raise UserError(f"the encoder {self.config.name} cannot be pre-trained")

    @classmethod
    def catalog(cls) -> Iterator[CatalogEntry]:
        """List the sizes in which this encoder comes; by default none."""
        return iter(())


class Autoencoder(nn.Module):
    """Base class of autoencoders, the maps between images and the space in which a generator works.

    Subclass it, set `Config`, provide `space`, implement `posterior` and `decode`, and `draw` and `mean` if encoding is
    random.

    Attributes:
        Config: the schema of its section in YAML.
        decoder_keys: prefixes of the weights that only decode; others may decode the same space.
        config: its section.
    """

    Config: ClassVar[Any]
    decoder_keys: ClassVar[tuple[str, ...]] = ()
    config: Any

    def __init__(self, config: Any, image_size: int) -> None:
        """Build the autoencoder of `config` for square images of `image_size` pixels."""
        super().__init__()
        self.config = config

    @property
    def space(self) -> Space:
        """The space of its latents or tokens. Its id hashes the weights: load them before asking."""
        raise NotImplementedError

    def posterior(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to what a cache stores of them, and `draw` turns into latents.

        That is tokens `(B, h, w)`, means and stds `(B, 2C, h, w)`, or the latents `(B, C, h, w)` themselves.
        """
        raise NotImplementedError

    def draw(self, posterior: Tensor) -> Tensor:
        """Draw latents `(B, *S)` from what `posterior` returned; by default it is the latent."""
        return posterior

    def mean(self, posterior: Tensor) -> Tensor:
        """Return the mean latents `(B, *S)` of what `posterior` returned; by default it is the latent."""
        return posterior

    def encode(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to latents `(B, *S)`, random ones where `draw` is."""
        return self.draw(self.posterior(image))

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents `(B, *S)` to images `(B, 3, H, W)` in [0, 1]."""
        raise NotImplementedError

    @property
    def has_weights(self) -> bool:
        """Whether there are weights: without, encoding costs nothing, and a cache is of no use."""
        return next(self.parameters(), None) is not None

    def freeze(self) -> Self:
        """Switch to evaluation mode, without gradients of weights."""
        return self.eval().requires_grad_(False)


class Reconstruction(NamedTuple):
    """A batch that an autoencoder reconstructed in training."""

    image: Tensor
    """`(B, 3, H, W)`, nominally in [0, 1], not clamped."""
    losses: dict[str, Tensor]
    """Named scalar losses of its bottleneck."""
    codes: Tensor | None
    """The codes used, int64 `(B, h, w)`; None for a continuous bottleneck."""
    latent: Tensor
    """`(B, channels, h, w)` with gradients, before it is quantized: what alignment compares."""


class TrainableAutoencoder(Autoencoder):
    """Base class of autoencoders that tools/train_autoencoder.py can train; `forward` returns a `Reconstruction`.

    Attributes:
        channels: of the grid that it returns as `latent` in training.
        standardize: scales continuous latents by a mean and a std that are measured when training ends, and has `undo`;
            None for tokens.
        trains_decoder_only: whether nothing but the decoder learns; the latents stay what they are.
    """

    channels: int
    trains_decoder_only = False
    standardize: nn.Module | None

    def __init__(self, config: Any, image_size: int) -> None:
        """Build the autoencoder of `config` for square images of `image_size` pixels."""
        super().__init__(config, image_size)
        self.standardize = None  # an attribute of the class would hide the module that is assigned later

    def forward(self, image: Tensor) -> Reconstruction:
        """Reconstruct images `(B, 3, H, W)` in [0, 1], with gradients."""
        raise NotImplementedError

    @property
    def last_layer(self) -> Tensor:
        """The weight that both the reconstruction and the discriminator see last."""
        raise NotImplementedError

    @property
    def vocab(self) -> int | None:
        """Number of codes; None without a codebook."""
        return None

    def train_decoder_only(self) -> None:
        """Let nothing but the decoder learn from now on."""
        self.trains_decoder_only = True
        for name, p in self.named_parameters():
            p.requires_grad_(name.startswith(self.decoder_keys))
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Change to training mode, or back; if only the decoder is trained, all else stays in evaluation mode."""
        super().train(mode)
        for name, part in self.named_children():
            if self.trains_decoder_only and f"{name}." not in self.decoder_keys:
                part.eval()
        return self

    def adopt(self, encoder: Encoder) -> None:
        """Take over the weights of an encoder of the same configuration, if the latents are features of one."""
        raise NotImplementedError

    def rename(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a published file under our names."""
        raise NotImplementedError


class Noise(Protocol):
    """A source of random draws for a batch; `rcg.core.rng.SampleNoise` gives each sample its own."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return `(B, *shape)` standard normal draws."""
        ...

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Return `(B, *shape)` uniform draws from [0, 1)."""
        ...


class Level(NamedTuple):
    """A noise level, where x = alpha x_0 + sigma eps; clean data is (alpha, sigma) = (1, 0).

    For tokens, the share alpha is known and the share sigma is masked.
    """

    t: float
    """The time that the network gets."""
    alpha: float
    sigma: float
    end: Level | None = None
    """Where a straight step from here ends, for a process that can predict its direction; None: it is infinitely short.
    """

    @property
    def half_log_snr(self) -> float:
        """Return lambda = log(alpha / sigma), infinite at clean data and minus infinite at pure noise."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf

    def variance_since(self, end: Level) -> float:
        """Return sigma^2_{t|s} = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2: the noise that entered since `end`, s.

        Source: Kingma et al., Variational Diffusion Models, 2021, Section 3.1.
        """
        return max(self.sigma**2 - (self.alpha / end.alpha) ** 2 * end.sigma**2, 0.0)


class Process(Protocol[Estimate]):
    """How data is corrupted in training, and what the network predicts.

    Of real-valued data the estimate is a `Prediction`, of tokens the logits `(B, K, *S)` where they are `MASK`.

    Attributes:
        outputs: network outputs per data element.
        horizon: upper end of the times; a Gaussian process of T levels has T, and its times end at T - 1.
    """

    outputs: int
    horizon: float

    def loss(self, net: Net, x: Tensor, cond: Tensor | None) -> dict[str, Tensor]:
        """Return named scalar losses for data `x` `(B, *S)`; their sum is minimized."""
        ...

    def levels(self, steps: int, *spacing: str) -> list[Level]:
        """Return `steps` levels, noisiest first, and the one at which sampling ends; tokens know no spacing."""
        ...

    def matching(self, level: Level) -> Level:
        """Return the level of this process with the ratio of signal to noise of another's `level`, or the nearest."""
        ...

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Estimate:
        """Evaluate the network at `x` `(B, *S)` and a level, and return its estimate of clean data."""
        ...

    def read(self, output: Tensor, x: Tensor, t: Tensor) -> Estimate:
        """Read the estimate off an output `(B, outputs, ...)` at `x` `(B, *S)` and times `t` `(B,)`."""
        ...


class Sampler(Protocol):
    """A way from noise to data that evaluates the network only through `process.predict`.

    For real-valued data its first normal draw is x at the first of `process.levels`; SDEdit relies on it.
    """

    def __call__(self, process: Any, net: Net, space: Space, cond: Tensor | None, noise: Noise) -> Tensor:
        """Return `(B, *S)` samples."""
        ...


class EvalResult(NamedTuple):
    """An evaluation of a half-trained model.

    Attributes:
        metrics: numbers for the log.
        images: pictures `(3, H, W)` in [0, 1].
        score: what early stopping compares; lower is better.
    """

    metrics: dict[str, float]
    images: dict[str, Tensor]
    score: float | None = None


class Task(ABC):
    """What the training loop trains: modules, the data they see, their losses, and what is exported of them.

    Attributes:
        modules: what is trained, by name; each gets an optimizer of its own.
        data: the data set: it has a length and `in_memory`, and `data[position, draw]` is a sample; or it is an
            `rcg.data.loading.TensorDataset`, which serves whole batches.
        facts: an `rcg.core.checkpoint.Facts`, what the exported part says of its neighbors.
    """

    modules: dict[str, nn.Module]
    data: Any
    facts: Any

    @abstractmethod
    def losses(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield `(module name, named losses)`; the loop takes one optimizer step for each yield."""

    @abstractmethod
    def evaluate(self, models: Mapping[str, nn.Module], step: int) -> EvalResult:
        """Evaluate the (averaged) models."""

    @abstractmethod
    def export(self, models: Mapping[str, nn.Module]) -> Any:
        """Return the `rcg.core.checkpoint.Part` that other stages load."""

    def other_parts(self, models: Mapping[str, nn.Module]) -> Iterator[tuple[Path, Any]]:
        """Yield the parts that lie elsewhere in the run, with their files; by default there are none.

        They are written before that of `export`, which may name them.
        """
        yield from ()

    def after_step(self, step: int) -> None:  # noqa: B027 - most tasks have nothing to update
        """Update what follows the weights without gradients (a momentum encoder, say); by default nothing."""

    def compiled(self, name: str) -> nn.Module:
        """Return what `train.compile` compiles of a module; by default all of it."""
        return self.modules[name]
