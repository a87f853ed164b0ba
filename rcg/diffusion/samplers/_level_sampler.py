"""The base of samplers of real-valued data: which noise levels they visit."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from rcg.config import SamplerConfig
from rcg.core.contracts import Level, Net, Prediction, Process


class LevelSampler(SamplerConfig):
    """A sampler that visits noise levels, from the noisiest to clean data."""

    spacing: Literal["trailing", "leading", "linspace", "rcg"] = "trailing"
    """Levels visited: evenly from the noisiest on (Lin et al., 2023), from the cleanest on (DDIM's own), from one to
    the other (Improved DDPM, ADM, DiT), or LDM's and the RDM's (rcg: leading, shifted by one, ending at level 0).
    leading and rcg begin at the last level too where steps do not divide the number of levels."""
    clip: bool = False
    """Keep every estimate of clean data in [-1, 1]; for pixels, never for representations."""

    def levels(self, process: Process) -> list[Level]:
        """Return the levels that the sampler visits, noisiest first, and the one at which it ends."""
        return process.levels(self.steps, self.spacing)

    @property
    def clips(self) -> bool:
        """Whether estimates of clean data are kept in [-1, 1]."""
        return self.clip

    def predict(self, process: Process, net: Net, x: Tensor, level: Level, cond: Tensor | None) -> Prediction:
        """Evaluate the network at `x` `(B, *S)` and `level`, clean data clipped if so configured."""
        prediction = process.predict(net, x, level, cond)
        if not self.clip:
            return prediction
        x0 = prediction.x0.clamp(-1, 1)
        return prediction._replace(x0=x0, eps=(x - level.alpha * x0) / level.sigma)
