"""The base of Gaussian diffusion and flow matching: x_t = alpha_t x_0 + sigma_t eps, and one prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal, NamedTuple, TypeVar

import torch
from pydantic import PositiveFloat, model_validator
from torch import Tensor, nn

from rcg.config import OWN, ProcessConfig
from rcg.core.contracts import EARLY, Level, Net, Prediction
from rcg.core.rng import draws

Scale = TypeVar("Scale", float, Tensor)
Quantity = Literal["x0", "eps", "v", "velocity"]
"""What a network predicts, and an error is measured in: see `AffineConfig.predict`."""
Times = Literal["uniform", "logit_normal", "pixels", "latents"]
"""Distributions of training times: see `AffineConfig.time`."""
LEAST_DIVISOR = 0.05
"""Smallest divisor of an error that is measured in another quantity than is predicted (JiT; Li and He, 2025)."""
PRESETS = {"pixels": (-1.2, 1.2), "latents": (0.0, 1.0)}
"""Means and standard deviations of ln(sigma / alpha)."""


class AffineConfig(ProcessConfig):
    """A process whose loss is the error of what the network predicts."""

    predict: Annotated[Quantity, OWN]
    """The network's output: the clean data, the noise, v = alpha eps - sigma x0 (Salimans and Ho, 2022), or the
    velocity eps - x0."""
    measure: Annotated[Quantity | None, OWN] = None
    """In what the error is measured; null: in what is predicted. It costs nothing, and weights the noise levels: a
    squared error of x0 counts once in x0, (alpha / sigma)^2 times in eps, ((alpha^2 + sigma^2) / sigma)^2 times in v,
    and ((alpha + sigma) / sigma)^2 times in velocity. Measured in x0, levels of little noise hardly count, and these
    make texture: for pixels, `predict: x0` with `measure: velocity` pays (JiT; Li and He, 2025). Where the measure
    divides by sigma (predict x0) or by alpha (predict eps), it divides by 0.05 at least."""
    loss: Literal["l2", "l1"] = "l2"
    """Squared error, or the absolute error that Diffusion Autoencoders use for latents."""
    time: Times
    """Distribution of training times: uniform, or such that ln(sigma / alpha) is normal, and a flow's time, which is
    sigma / (alpha + sigma), logistic normal. `pixels` is EDM's for 32 to 64 px, mean -1.2 and std 1.2 (Karras et al.,
    2022, Table 1); `latents` that of Stable Diffusion 3, mean 0 and std 1 (Esser et al., 2024, Section 3.1);
    `logit_normal` takes `time_mean` and `time_std`."""
    time_mean: float = 0.0
    """Mean of ln(sigma / alpha) with `time: logit_normal`; negative is cleaner. JiT has 0.8 for 256 px."""
    time_std: PositiveFloat = 1.0
    """Standard deviation of ln(sigma / alpha) with `time: logit_normal`. JiT has 0.8."""

    @model_validator(mode="after")
    def _refuse_numbers_beside_a_preset(self) -> AffineConfig:
        if self.time in PRESETS and (self.time_mean, self.time_std) != (0.0, 1.0):
            raise ValueError(
                f"time: {self.time} has a mean and a std of its own: choose time: logit_normal for others, or leave "
                f"time_mean and time_std out"
            )
        return self

    @property
    def log_ratio(self) -> tuple[float, float] | None:
        """Mean and std of ln(sigma / alpha) in training; None: times are uniform."""
        return None if self.time == "uniform" else PRESETS.get(self.time, (self.time_mean, self.time_std))


class Draws(NamedTuple):
    """The random part of one training step."""

    t: Tensor  # (B,) times
    noise: Tensor  # (B, *S)


class AffineProcess(nn.Module, ABC):
    """Corrupts data with scaled noise.

    Attributes:
        predicts: the network's output.
        measures: the quantity whose error is the loss.
        distance: how errors are summed, `l2` or `l1`.
    """

    outputs = 1
    horizon: float

    def __init__(self, config: AffineConfig) -> None:
        super().__init__()
        self.predicts, self.measures = config.predict, config.measure or config.predict
        self.distance = config.loss
        self.log_ratio = config.log_ratio

    def draw(self, x: Tensor) -> Draws:
        """Draw a time and a standard normal noise for each sample of `x` `(B, *S)`."""
        return Draws(self.draw_times(len(x), x.device), draws().normal(x.shape, x.device).to(x.dtype))

    def draw_times(self, count: int, device: torch.device) -> Tensor:
        """Draw times of training `(count,)`."""
        if self.log_ratio is None:
            return self.uniform_times(count, device)
        mean, std = self.log_ratio
        return self.times_at(mean + std * draws().normal((count,), device))

    @abstractmethod
    def uniform_times(self, count: int, device: torch.device) -> Tensor:
        """Draw times `(count,)`, all as likely as each other."""

    @abstractmethod
    def times_at(self, log_ratio: Tensor) -> Tensor:
        """Return the times `(B,)` at which ln(sigma / alpha) is `log_ratio` `(B,)`, or the nearest."""

    @abstractmethod
    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma `(B,)` at times `t` `(B,)`."""

    @abstractmethod
    def levels(self, steps: int, spacing: str) -> list[Level]:
        """Return `steps` levels, noisiest first, and the one at which sampling ends."""

    @abstractmethod
    def matching(self, level: Level) -> Level:
        """Return the level with the ratio of signal to noise of another process's `level`, or the nearest."""

    def corrupt(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t `(B, *S)` of data `x` at times `t` `(B,)`."""
        alpha, sigma = (expand_like(scale, x) for scale in self.scales(t))
        return alpha * x + sigma * noise

    def loss(self, net: Net, x: Tensor, cond: Tensor | None) -> dict[str, Tensor]:
        """Return the mean error of what the network predicts, at a random time."""
        t, noise = self.draw(x)
        x_t = self.corrupt(x, t, noise)
        output = net(x_t, t, cond).float()
        losses = self.errors(output, x, x_t, t, noise)
        if output.shape[1] > self.outputs:  # an early exit answers too
            early = self.errors(output[:, self.outputs :], x, x_t, t, noise)
            losses |= {EARLY + name: error for name, error in early.items()}
        return losses

    def errors(self, output: Tensor, x: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return the losses of an output `(B, outputs, *S)` at `x_t`, given the clean data `x` `(B, *S)`."""
        error = output[:, 0] - self.target(x, t, noise)
        if self.measures != self.predicts:
            error = expand_like(self.conversion(t), x) * error
        return {"mse": error.square().mean()} if self.distance == "l2" else {"l1": error.abs().mean()}

    def conversion(self, t: Tensor) -> Tensor:
        """Return the factor `(B,)` from an error of what is predicted to that of what is measured, but for its sign.

        At a given x_t, where x0 is off by sigma d, eps is by -alpha d, v by -(alpha^2 + sigma^2) d and velocity by
        -(alpha + sigma) d.
        """
        alpha, sigma = self.scales(t)
        scale = {"x0": sigma, "eps": alpha, "v": alpha**2 + sigma**2, "velocity": alpha + sigma}
        return scale[self.measures] / scale[self.predicts].clamp(min=LEAST_DIVISOR)

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Prediction:
        """Evaluate the network on `x` `(B, *S)` at a level and solve for clean data and noise."""
        output = net(x, self.network_times(level, len(x), x.device), cond).to(x.dtype)
        return self.solve(output[:, 0], x, level.alpha, level.sigma)._replace(
            variance_share=self.variance_share(output)
        )

    def network_times(self, level: Level, count: int, device: torch.device) -> Tensor:
        """Return what the network gets as times at a level, `(count,)`."""
        return torch.full((count,), level.t, device=device)

    def read(self, output: Tensor, x: Tensor, t: Tensor) -> Prediction:
        """Read clean data and noise off an output `(B, outputs, *S)` at `x` `(B, *S)` and times `t` `(B,)`."""
        alpha, sigma = (expand_like(scale, x) for scale in self.scales(t))
        return self.solve(output[:, 0].to(x.dtype), x, alpha, sigma)

    def variance_share(self, output: Tensor) -> Tensor | float:
        """Read the variance of a step off an output `(B, outputs, *S)`: `Prediction.variance_share`."""
        return 0.0

    def target(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the target of the prediction, `(B, *S)`."""
        alpha, sigma = (expand_like(scale, x) for scale in self.scales(t))
        return {"eps": noise, "x0": x, "v": alpha * noise - sigma * x, "velocity": noise - x}[self.predicts]

    def solve(self, output: Tensor, x: Tensor, alpha: Scale, sigma: Scale) -> Prediction:
        """Read clean data and noise off an output at `x`; scales are numbers or broadcast against `x`."""
        if self.predicts == "eps":
            return Prediction((x - sigma * output) / alpha, output)
        if self.predicts == "x0":
            return Prediction(output, (x - alpha * output) / sigma)
        if self.predicts == "v":
            power = alpha**2 + sigma**2
            return Prediction((alpha * x - sigma * output) / power, (sigma * x + alpha * output) / power)
        return Prediction((x - sigma * output) / (alpha + sigma), (x + alpha * output) / (alpha + sigma))


def expand_like(values: Tensor, x: Tensor) -> Tensor:
    """Shape `(B,)` values so that they broadcast against `x` `(B, *S)`."""
    return values.view(-1, *[1] * (x.ndim - 1))
