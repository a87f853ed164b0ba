"""What walks share: how many levels they visit and which, and the variance between two levels."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from rcg.config import SamplerConfig
from rcg.core.contracts import Level, Net, Prediction, Process


class GridConfig(SamplerConfig):
    """Which levels a sampler visits."""

    spacing: Literal["trailing", "leading", "linspace", "rcg"] = "trailing"
    """Levels visited: evenly from the noisiest on (Lin et al., 2023), from the cleanest on (DDIM's own), from one to
    the other (Improved DDPM, ADM, DiT), or LDM's and the RDM's (rcg: leading, shifted by one, ending at level 0)."""
    clip: bool = False
    """Keep every estimate of clean data in [-1, 1]; for pixels, never for representations."""


def predict(process: Process, net: Net, x: Tensor, level: Level, cond: Tensor | None, config: GridConfig) -> Prediction:
    """Ask the network at `x` `(B, *S)` and `level`, clean data clipped if so configured."""
    found = process.predict(net, x, level, cond)
    if not config.clip:
        return found
    x0 = found.x0.clamp(-1, 1)
    return found._replace(x0=x0, eps=(x - level.alpha * x0) / level.sigma)


def fresh(start: Level, end: Level) -> float:
    """Return sigma^2_{t|s} = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2: the noise that entered between two levels."""
    return start.sigma**2 - (start.alpha / end.alpha) ** 2 * end.sigma**2


def half_log_snr(level: Level) -> float:
    """Return lambda = log(alpha / sigma), infinite at clean data and minus infinite at pure noise."""
    if level.sigma == 0:
        return math.inf
    return math.log(level.alpha / level.sigma) if level.alpha > 0 else -math.inf
