"""The Gaussian diffusion process in discrete time (Ho et al., 2020; Nichol and Dhariwal, 2021).

x_t = alpha_t x_0 + sigma_t eps,   alpha_t^2 = prod_{s <= t} (1 - beta_s),   sigma_t^2 = 1 - alpha_t^2
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from rcg.config import Steps
from rcg.core.contracts import Level
from rcg.core.errors import UserError
from rcg.core.registry import PROCESSES
from rcg.core.rng import draws
from rcg.diffusion.processes._affine import AffineConfig, AffineProcess, Quantity, Times, expand_like
from rcg.diffusion.processes._likelihood import discrete_log_likelihood, gaussian_kl


class GaussianConfig(AffineConfig):
    """A Gaussian process: its schedule, and the prediction of the network."""

    name: str = "gaussian"
    schedule: Literal["linear", "sqrt_linear", "cosine", "constant"] = "linear"
    """Growth of beta: linear (DDPM), sqrt_linear (LDM, the RDM), cosine (IDDPM), constant 0.008 (DiffAE's latents)."""
    predict: Quantity = "eps"
    time: Times = "uniform"
    steps: Annotated[Steps, Field(gt=1)] = 1000
    """Number T of noise levels."""
    variance: Literal["fixed_small", "fixed_large", "learned_range"] = "fixed_small"
    """Variance of a step of ancestral sampling: of the posterior q(x_s | x_t, x_0), or beta (the two bounds of Ho et
    al., 2020, Section 3.2), or learned between them by a second output (Nichol and Dhariwal, 2021)."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that the last level is pure noise (Lin et al., 2024, Algorithm 1)."""

    @model_validator(mode="after")
    def _refuse_eps_at_pure_noise(self) -> GaussianConfig:
        if self.zero_terminal_snr and self.predict == "eps":
            raise ValueError(
                "zero_terminal_snr needs predict x0, v or velocity: at pure noise, the noise determines no data"
            )
        return self

    @property
    def amplification(self) -> float:
        """The last level's sigma / alpha where noise is predicted, for x_0 = (x_t - sigma eps) / alpha; else 1."""
        if self.predict != "eps":
            return 1.0
        log_alpha_bar = float(np.log1p(-betas(self.schedule, self.steps)).sum())
        return math.sqrt(math.expm1(-log_alpha_bar))

    @property
    def learns_variance(self) -> bool:
        """Whether the network predicts the variance of a step as well."""
        return self.variance == "learned_range"


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


def zero_terminal_snr(alpha_bar: np.ndarray) -> np.ndarray:
    """Shift and scale the amplitudes of `alpha_bar` `(T,)` so that the last is zero and the first stays."""
    alpha = np.sqrt(alpha_bar)
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


@PROCESSES.register
class Gaussian(AffineProcess):
    """Corrupts data with Gaussian noise; its tables move with the module but are not part of its state.

    Attributes:
        alpha_bar: float64 `(T,)`, squared signal amplitude of each level.
    """

    Config = GaussianConfig
    alpha: Tensor
    sigma: Tensor
    pull: Tensor
    log_posterior: Tensor
    log_beta: Tensor

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__(config)
        self.steps, self.horizon = config.steps, config.steps
        self.learned = config.learns_variance
        self.outputs = 2 if self.learned else 1
        self.share = 1.0 if config.variance == "fixed_large" else 0.0
        self.alpha_bar = np.cumprod(1 - betas(config.schedule, config.steps))
        if config.zero_terminal_snr:
            self.alpha_bar = zero_terminal_snr(self.alpha_bar)
        self._add_tables(alpha=np.sqrt(self.alpha_bar), sigma=np.sqrt(1 - self.alpha_bar))
        if self.learned:
            self._add_tables(**posterior(self.alpha_bar))

    def uniform_times(self, count: int, device: torch.device) -> Tensor:
        """Draw levels `(count,)`, all as likely as each other."""
        return draws().integers(self.steps, (count,), device)

    def times_at(self, log_ratio: Tensor) -> Tensor:
        """Return the levels `(B,)` whose ln(sigma / alpha) is the nearest to `log_ratio` `(B,)`."""
        own = torch.log(self.sigma / self.alpha)
        return torch.bucketize(log_ratio, (own[1:] + own[:-1]) / 2)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma `(B,)` at integer times `t` `(B,)`."""
        return self.alpha[t], self.sigma[t]

    def errors(self, output: Tensor, x: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return the loss of the prediction and, if it is learned, of the variance: L_hybrid of Nichol and Dhariwal.

        The variational term `vb` is in bits per dimension, weighted as in their Section 3.1: 0.001 T, which is 1 for
        the usual 1000 levels. Only the variance gets its gradient.
        """
        losses = super().errors(output, x, x_t, t, noise)
        if self.learned:
            losses["vb"] = self.steps / 1000 * self._variational(output, x, x_t, t).mean()
        return losses

    def variance_share(self, output: Tensor) -> Tensor | float:
        """Read the variance of a step off an output `(B, outputs, *S)`: `Prediction.variance_share`."""
        return (output[:, 1] + 1) / 2 if self.learned else self.share

    def levels(self, steps: int, spacing: str) -> list[Level]:
        """Return `steps` distinct levels, noisiest first, and clean data (`rcg`: level 0).

        `leading` and `rcg` are as published where `steps` divides the number of levels, T; for other numbers, which the
        published code cannot spread over all levels, they go evenly from the last level to the cleanest one.

        Raises:
            UserError: more steps than levels, or the first level has more signal than noise.
        """
        if steps > self.steps:
            raise UserError(
                f"sampler.steps is {steps}, but the process has {self.steps} noise levels: give at most that many"
            )
        if spacing == "trailing":
            return [*(self._level(self.steps - 1 - i * self.steps // steps) for i in range(steps)), CLEAN]
        if spacing == "linspace":
            return [*(self._level(round(t)) for t in np.linspace(self.steps - 1, 0, steps)), CLEAN]
        shift = 1 if spacing == "rcg" and steps < self.steps else 0
        if self.steps % steps == 0:
            times = [i * (self.steps // steps) + shift for i in reversed(range(steps))]
        else:
            times = [round(t) for t in np.linspace(self.steps - 1, shift, steps)]
        visited = [self._level(t) for t in times]
        if visited[0].alpha > visited[0].sigma:
            raise UserError(
                f"sampler.spacing {spacing} with {steps} step(s) begins at level {times[0]} of {self.steps}, which is "
                f"not noise: use spacing trailing, or more steps"
            )
        return [*visited, self._level(0) if spacing == "rcg" else CLEAN]

    def matching(self, level: Level) -> Level:
        """Return the level with the ratio of signal to noise of another process's `level`, between two of ours.

        Ratios beyond the first or the last level have that level.
        """
        # The angle of (alpha, sigma), from 0 at clean data to pi / 2 at pure noise, where the ratio is infinite.
        angle = math.atan2(level.sigma, level.alpha)
        own = np.arctan2(np.sqrt(1 - self.alpha_bar), np.sqrt(self.alpha_bar))
        t = float(np.interp(angle, own, np.arange(self.steps)))
        return self._level(int(t)) if t.is_integer() else Level(t, math.cos(angle), math.sin(angle))

    def _variational(self, output: Tensor, x: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the terms of the variational bound at times `t`, in bits, `(B, *S)`.

        KL(q(x_s | x_t, x_0) || p(x_s | x_t)) for the step from t to s = t - 1, and -log p(x_0 | x_t) at the last one.
        """
        alpha, sigma = (expand_like(scale, x) for scale in self.scales(t))
        x0 = self.solve(output[:, 0].detach(), x_t, alpha, sigma).x0
        small, large, pull = (expand_like(table[t], x) for table in (self.log_posterior, self.log_beta, self.pull))
        log_variance = torch.lerp(small.expand_as(x), large.expand_as(x), self.variance_share(output))
        kl = gaussian_kl(pull * (x - x0), small, log_variance)
        negative_log_likelihood = -discrete_log_likelihood(x, x0, log_variance)
        return torch.where(expand_like(t, x) == 0, negative_log_likelihood, kl) / math.log(2)

    def _add_tables(self, **tables: np.ndarray) -> None:
        for name, table in tables.items():
            self.register_buffer(name, torch.tensor(table).float(), persistent=False)

    def _level(self, t: int) -> Level:
        return Level(t, math.sqrt(self.alpha_bar[t]), math.sqrt(1 - self.alpha_bar[t]))


def posterior(alpha_bar: np.ndarray) -> dict[str, np.ndarray]:
    """Return tables `(T,)` of q(x_s | x_t, x_0), s = t - 1 (Ho et al., 2020, eq. 6 and 7).

    `pull` is the factor of x_0 in its mean, `log_posterior` its log-variance and `log_beta` that of q(x_t | x_s). At
    t = 0 the posterior has no variance; as published, the next one stands in for it.
    """
    before = np.append(1.0, alpha_bar[:-1])
    beta = 1 - alpha_bar / before
    variance = beta * (1 - before) / (1 - alpha_bar)
    variance[0] = variance[1]
    pull = beta * np.sqrt(before) / (1 - alpha_bar)
    return {"pull": pull, "log_posterior": np.log(variance), "log_beta": np.log(beta)}


CLEAN = Level(0, 1.0, 0.0)
