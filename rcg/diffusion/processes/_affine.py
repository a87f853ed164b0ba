"""The base of Gaussian diffusion and flow matching: x_t = alpha_t x_0 + sigma_t eps, and one prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from rcg.config import ProcessConfig
from rcg.core.contracts import Level, Net, Prediction

Scale = TypeVar("Scale", float, Tensor)


class AffineConfig(ProcessConfig):
    """A process whose loss is the error of what the network predicts."""

    loss: Literal["l2", "l1"] = "l2"
    """Squared error, or the absolute error that Diffusion Autoencoders use for latents."""


class Draws(NamedTuple):
    """The random part of one training step."""

    t: Tensor  # (B,) times
    noise: Tensor  # (B, *S)


class AffineProcess(nn.Module, ABC):
    """Corrupts data with scaled noise.

    Attributes:
        predicts: the network's output: `eps`, `x0`, `v` = alpha eps - sigma x0 (Salimans and Ho, 2022), or
            `velocity` = eps - x0.
    """

    outputs = 1
    horizon: float

    def __init__(self, predicts: str, loss: str) -> None:
        super().__init__()
        self.predicts, self.measure = predicts, loss

    @abstractmethod
    def draw(self, x: Tensor) -> Draws:
        """Draw a time and a standard normal noise for each sample of `x` `(B, *S)`."""

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
        return self.errors(net(x_t, t, cond).float(), x, x_t, t, noise)

    def errors(self, output: Tensor, x: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return the losses of an output `(B, outputs, *S)` at `x_t`, given the clean data `x` `(B, *S)`."""
        error = output[:, 0] - self.target(x, t, noise)
        return {"mse": error.square().mean()} if self.measure == "l2" else {"l1": error.abs().mean()}

    def predict(self, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Prediction:
        """Evaluate the network on `x` `(B, *S)` at a level and solve for clean data and noise."""
        times = torch.full((len(x),), level.t, device=x.device)
        output = net(x, times, cond).to(x.dtype)
        return self.solve(output[:, 0], x, level.alpha, level.sigma)._replace(
            variance_share=self.variance_share(output)
        )

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
