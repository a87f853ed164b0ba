"""The Gaussian diffusion process in discrete time (Ho et al., 2020; Nichol and Dhariwal, 2021).

x_t = alpha_t x_0 + sigma_t eps,   alpha_t^2 = prod_{s <= t} (1 - beta_s),   sigma_t^2 = 1 - alpha_t^2
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from rcg.config import ComponentConfig
from rcg.contracts import Net, Prediction
from rcg.registry import PROCESSES


class GaussianConfig(ComponentConfig):
    """A Gaussian process: its schedule and what the network predicts."""

    name: str = "gaussian"
    schedule: Literal["linear", "sqrt_linear", "cosine", "constant"] = "linear"
    """Growth of beta: linear (DDPM), sqrt_linear (LDM, the RDM), cosine (IDDPM), constant 0.008 (DiffAE's latents)."""
    predict: Literal["eps", "x0", "v"] = "eps"
    """The network's output: the noise, the clean data, or v = alpha eps - sigma x0 (Salimans and Ho, 2022)."""
    steps: Annotated[PositiveInt, Field(gt=1)] = 1000
    """Number T of noise levels."""


class Draws(NamedTuple):
    """The random part of one training step."""

    t: Tensor  # (B,) integer times
    noise: Tensor  # (B, *S)


def betas(schedule: str, steps: int) -> np.ndarray:
    """Return the noise added at each of the `steps` levels, float64, in (0, 1).

    linear: 1e-4 to 0.02, scaled with 1000 / steps (Ho et al., 2020, Section 4). sqrt_linear: squares of a line from
    sqrt(0.0015) to sqrt(0.0195) (Rombach et al., 2022, as the RDM uses it). cosine: Nichol and Dhariwal, 2021, eq. 17.
    """
    scale = 1000 / steps
    if schedule == "linear":
        return np.linspace(scale * 1e-4, min(scale * 0.02, 0.999), steps, dtype=np.float64)
    if schedule == "sqrt_linear":
        return np.minimum(scale * np.linspace(0.0015**0.5, 0.0195**0.5, steps, dtype=np.float64) ** 2, 0.999)
    if schedule == "cosine":
        alpha_bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    if schedule == "constant":
        return np.full(steps, min(scale * 0.008, 0.999))
    raise ValueError(f"unknown schedule {schedule!r}")


@PROCESSES.register
class Gaussian(nn.Module):
    """Corrupts data with Gaussian noise; its tables move with the module but are not part of its state.

    Attributes:
        alpha_bar: float64 `(T,)`, squared signal amplitude of each level.
        heads: network outputs per data element.
    """

    Config = GaussianConfig
    heads = 1
    alpha: Tensor
    sigma: Tensor

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__()
        self.parameterisation = config.predict
        self.steps = config.steps
        self.alpha_bar = np.cumprod(1 - betas(config.schedule, config.steps))
        self.register_buffer("alpha", torch.tensor(np.sqrt(self.alpha_bar)).float(), persistent=False)
        self.register_buffer("sigma", torch.tensor(np.sqrt(1 - self.alpha_bar)).float(), persistent=False)

    def draw(self, x: Tensor) -> Draws:
        """Draw a uniform time and a standard normal noise for each sample of `x` `(B, *S)`."""
        t = torch.randint(self.steps, (len(x),), device=x.device)
        return Draws(t, torch.randn_like(x))

    def corrupt(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t `(B, *S)` of data `x` at times `t` `(B,)`."""
        return _like(self.alpha[t], x) * x + _like(self.sigma[t], x) * noise

    def loss(self, net: Net, x: Tensor, cond: Tensor | None) -> dict[str, Tensor]:
        """Mean squared error of what the network predicts, at a random time."""
        t, noise = self.draw(x)
        output = net(self.corrupt(x, t, noise), t, cond)[:, 0].float()
        return {"mse": (output - self._target(x, t, noise)).square().mean()}

    def predict(self, net: Net, x: Tensor, t: int, cond: Tensor | None) -> Prediction:
        """Evaluate the network on `x` `(B, *S)` at level `t` and solve for clean data and noise."""
        times = torch.full((len(x),), t, device=x.device)
        output = net(x, times, cond)[:, 0].to(x.dtype)
        alpha, sigma = math.sqrt(self.alpha_bar[t]), math.sqrt(1 - self.alpha_bar[t])
        if self.parameterisation == "eps":
            return Prediction((x - sigma * output) / alpha, output)
        if self.parameterisation == "x0":
            return Prediction(output, (x - alpha * output) / sigma)
        return Prediction(alpha * x - sigma * output, sigma * x + alpha * output)

    def _target(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        if self.parameterisation == "eps":
            return noise
        if self.parameterisation == "x0":
            return x
        return _like(self.alpha[t], x) * noise - _like(self.sigma[t], x) * x


def _like(values: Tensor, x: Tensor) -> Tensor:
    """Shape `(B,)` values so that they broadcast against `x` `(B, *S)`."""
    return values.view(-1, *[1] * (x.ndim - 1))
