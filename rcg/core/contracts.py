"""What the rooms promise each other: `Space` values and the protocols that exchange tensors in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

Net = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A denoising function `net(x, t, cond) -> (B, heads, *S)`; networks, EMA copies and `Guided` are all of this kind.

Of tokens it returns logits `(B, heads, K, *S)`.
"""

MASK = -1
"""What stands in the place of a token that is not known."""


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

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serializable description."""
        return {"shape": list(self.shape), "vocab": self.vocab, "id": self.id}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Space:
        """Rebuild what `to_json` wrote."""
        return cls(tuple(value["shape"]), value["vocab"], value["id"])


class Prediction(NamedTuple):
    """What a Gaussian or flow process reads off a network's output; tensors are `(B, *S)`.

    The log-variance of a random step back lies between two bounds, which depend on where the step ends; what is known
    here is the share: 0 is the posterior q(x_s | x_t, x_0)'s variance, 1 is beta (Nichol and Dhariwal, 2021, eq. 15).
    """

    x0: Tensor
    eps: Tensor
    variance: Tensor | float = 0.0


class Encoder(Protocol):
    """An image encoder; `rcg.encoding.representation.Representation` freezes it.

    Attributes:
        width: D of the representation.
        grid: rows and columns of `tokens`, None for an encoder without patches.
        license: license of its weights, empty where there is none.
    """

    width: int
    grid: tuple[int, int] | None
    license: str

    def __call__(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to representations `(B, D)`."""
        ...

    def tokens(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to patch features `(B, N, D')`; raises `UserError` without patches."""
        ...


class Listing(NamedTuple):
    """An encoder that a person may choose; `weights` says whether its weights are here."""

    name: str
    width: int
    side: int
    millions: int
    license: str
    weights: str


class Autoencoder(Protocol):
    """A frozen pair of maps between images and the space in which a generator works."""

    space: Space

    def encode(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to latents `(B, *S)`."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents `(B, *S)` to images `(B, 3, H, W)` in [0, 1]."""
        ...


class LearnedAutoencoder(Autoencoder, Protocol):
    """An autoencoder with weights: what it says of an image is worth keeping, `encode(image) = draw(posterior(image))`.

    Attributes:
        config: its section, an `rcg.config.ComponentConfig`.
        decoding: the names that begin those of the weights which only paint; others may do it without another space.
    """

    config: Any
    decoding: tuple[str, ...]

    def posterior(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to tokens `(B, h, w)`, or to what latents are drawn from.

        That is `(B, 2C, h, w)`, means and deviations, or without randomness the latents `(B, C, h, w)` themselves.
        """
        ...

    def draw(self, posterior: Tensor) -> Tensor:
        """Draw latents `(B, *S)` from what `posterior` returned; tokens stay as they are."""
        ...


class Reconstruction(NamedTuple):
    """What an autoencoder in training makes of a batch."""

    image: Tensor
    """`(B, 3, H, W)`, nominally in [0, 1], not cut off."""
    losses: dict[str, Tensor]
    """Named scalar losses of its bottleneck."""
    codes: Tensor | None
    """The codes used, int64 `(B, h, w)`; None for a continuous bottleneck."""


class Noise(Protocol):
    """A source of random draws for a batch; `rcg.core.rng.Streams` gives each sample its own."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return `(B, *shape)` standard normal draws."""
        ...

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Return `(B, *shape)` uniform draws from [0, 1)."""
        ...


class Level(NamedTuple):
    """One stop on a walk from noise to data, where x = alpha x_0 + sigma eps; clean data is (alpha, sigma) = (1, 0).

    Of tokens, the share alpha is known and the share sigma is masked.
    """

    t: float
    """The time that the network is told."""
    alpha: float
    sigma: float


class Process(Protocol):
    """How data is corrupted in training, and what is asked of the network.

    Attributes:
        heads: network outputs per data element.
        horizon: the largest time that the network is told.
    """

    heads: int
    horizon: float

    def loss(self, net: Net, x: Tensor, cond: Tensor | None) -> dict[str, Tensor]:
        """Return named scalar losses for data `x` `(B, *S)`; their sum is minimized."""
        ...

    def levels(self, steps: int, spacing: str) -> list[Level]:
        """Return `steps` levels, noisiest first, and the one at which the walk ends."""
        ...

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Prediction:
        """Evaluate the network at `x` `(B, *S)` and a level, and express it as clean data and noise."""
        ...


class TokenProcess(Protocol):
    """A process that masks tokens; what it has in common with `Process` means the same."""

    heads: int
    horizon: float

    def loss(self, net: Net, x: Tensor, cond: Tensor | None) -> dict[str, Tensor]:
        """Return named scalar losses for tokens `x` `(B, *S)`; their sum is minimized."""
        ...

    def levels(self, steps: int) -> list[Level]:
        """Return `steps` levels, all masked first, and the one at which the walk ends: nothing masked."""
        ...

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Tensor:
        """Return the logits `(B, K, *S)` of the tokens where `x` `(B, *S)` is `MASK`."""
        ...


class Sampler(Protocol):
    """A walk from noise to data that asks the network only through `process.predict`.

    Of real numbers, its first normal draw is where the walk begins, at the first of `process.levels`.
    """

    def __call__(self, process: Any, net: Net, space: Space, cond: Tensor | None, noise: Noise) -> Tensor:
        """Return `(B, *S)` samples."""
        ...


class Report(NamedTuple):
    """What a task has to say about a half-trained model: numbers for the log, pictures `(3, H, W)` in [0, 1].

    The score is what early stopping looks at; lower is better.
    """

    metrics: dict[str, float]
    images: dict[str, Tensor]
    score: float | None = None


class Task(Protocol):
    """What the training loop trains: modules, the data they see, their losses, and what is kept of them."""

    modules: dict[str, nn.Module]
    data: Any

    def losses(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield `(module name, named losses)`; the loop takes one optimizer step for each yield."""
        ...

    def after_step(self, step: int) -> None:
        """Update what follows the weights without gradients (a momentum encoder, say)."""
        ...

    def evaluate(self, models: Mapping[str, nn.Module], step: int) -> Report:
        """Judge the (averaged) models."""
        ...

    def export(self, models: Mapping[str, nn.Module]) -> Any:
        """Return the `rcg.core.checkpoint.Part` that other stages load."""
        ...
