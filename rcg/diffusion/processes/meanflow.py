"""Mean flows (Geng et al., NeurIPS 2025): a flow whose network predicts mean velocities, for one or a few evaluations.

The mean velocity from time t down to r is u(x_t, r, t) = (x_t - x_r) / (t - r), where x_r lies on the path of the flow
through x_t. So x_r = x_t - (t - r) u is one step, however long; where r = t, u is the velocity v of the flow. The
definition, differentiated along the path, gives what training needs (their eq. 6):

u = v - (t - r) du/dt,   du/dt = v du/dx_t + (derivative by t at a fixed r)
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rcg.config import OWN
from rcg.core.contracts import Level, Net, Prediction
from rcg.core.registry import PROCESSES
from rcg.core.rng import draws
from rcg.diffusion.processes._affine import LEAST_DIVISOR, expand_like
from rcg.diffusion.processes._straight import Straight, StraightConfig

SOFTENING = 1e-3
"""Added to the squared error of a sample before it divides it."""


class MeanFlowConfig(StraightConfig):
    """A mean flow, which ddim samples in as few steps as are wanted, `sampler: {name: ddim, steps: 1}` among them.

    All other samplers integrate its velocities, as those of a flow. Published ones were trained from the start for a
    long time; it is cheaper for the small networks of RDMs, or from a trained flow on (`train.init_from`).
    """

    times: ClassVar[int] = 2

    name: str = "meanflow"
    predict: Annotated[Literal["velocity", "x0"], OWN] = "velocity"
    """The network's output: the mean velocity u, or x_t - t u, which is clean data where a step ends at clean data and
    where it is infinitely short (pixel mean flows; Lu et al., 2026)."""
    leaps: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the samples that learn the mean velocity between two times, each at about twice the cost of another; the
    others learn the velocity at one time, on which long steps are built."""
    tangent: Literal["network", "sample"] = "network"
    """The velocity along which u is differentiated: the network's own, which costs one more evaluation but has no
    noise (improved mean flows; Geng et al., 2025), or eps - x0 of the sample, as published first."""
    balance: NonNegativeFloat = 1.0
    """Divide the squared error of each sample by this power of itself, without gradient: at 1, as
    published, samples with large errors count no more than others; 0: they count as they are."""

    @model_validator(mode="after")
    def _refuse_other_losses(self) -> MeanFlowConfig:
        if self.loss != "l2" or self.measure not in (None, "velocity"):
            raise ValueError("a mean flow measures squared errors of velocities: leave loss and measure out")
        return self


@PROCESSES.register
class MeanFlow(Straight):
    """Moves noise to data on straight lines; the network gets 1000 t and 1000 (t - r), `(B, 2)`."""

    Config = MeanFlowConfig

    def __init__(self, config: MeanFlowConfig) -> None:
        super().__init__(config)
        self.leaps, self.tangent, self.balance = config.leaps, config.tangent, config.balance

    def loss(self, net: Net, x: Tensor, cond: Tensor | None) -> dict[str, Tensor]:
        """Return the mean error of the velocities that the mean velocities amount to, v = u + (t - r) du/dt.

        The derivative has no gradient; it is computed apart from the evaluation that has one, which wrappers of the
        network (of several processes, of compilers) thus see as any other.
        """
        t, noise = self.draw(x)
        times = torch.stack([t, torch.zeros_like(t)], dim=1)
        v, rate = noise - x, torch.zeros_like(x)
        with draws().spread(self.leaps, len(x)) as leaping:
            others = self.draw_times(len(leaping), x.device)
            times[leaping, 0] = torch.maximum(t[leaping], others)
            times[leaping, 1] = (t[leaping] - others).abs()
            x_t = self.corrupt(x, times[:, 0], noise)
            own = None if cond is None else cond[leaping]
            rate[leaping] = self.rate(net, x_t[leaping], times[leaping], own, v[leaping]).to(x.dtype)
        u = self.mean_velocity(net, x_t, times, cond)
        error = (u + expand_like(times[:, 1] / self.horizon, x) * rate - v).square().flatten(1).mean(1)
        if self.training and self.balance:
            error = error / (error.detach() + SOFTENING) ** self.balance
        return {"mse": error.mean()}

    @torch.no_grad()
    def rate(self, net: Net, x: Tensor, times: Tensor, cond: Tensor | None, v: Tensor) -> Tensor:
        """Return du/dt `(B, *S)` at a fixed end, along the path of the flow through `x` `(B, *S)`.

        Args:
            net: the network.
            x: noisy data.
            times: `(B, 2)`.
            cond: the condition.
            v: eps - x0 `(B, *S)`.
        """

        def u(x: Tensor, times: Tensor) -> Tensor:
            return self.mean_velocity(net, x, times, cond)

        if self.tangent == "network":
            v = u(x, times * torch.tensor([1.0, 0.0], device=x.device))
        # Neither compiled networks nor fused attention can be differentiated forward.
        with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
            rate: Tensor = torch.func.jvp(u, (x, times), (v, torch.full_like(times, self.horizon)))[1]
        return rate

    def mean_velocity(self, net: Net, x: Tensor, times: Tensor, cond: Tensor | None) -> Tensor:
        """Return u `(B, *S)` at `x` `(B, *S)` and `times` `(B, 2)`."""
        output = net(x, times, cond)[:, 0].float()
        if self.predicts == "velocity":
            return output
        return (x - output) / expand_like(times[:, 0] / self.horizon, x).clamp(min=LEAST_DIVISOR)

    def matching(self, level: Level) -> Level:
        """Return the level with the ratio of signal to noise of another process's `level`, its end as well."""
        end = None if level.end is None else super().matching(level.end)
        return super().matching(level)._replace(end=end)

    def network_times(self, level: Level, count: int, device: torch.device) -> Tensor:
        """Return what the network gets as times at a level, `(count, 2)`."""
        span = 0.0 if level.end is None else level.t - level.end.t
        return torch.tensor([level.t, span], device=device).expand(count, 2)

    def read(self, output: Tensor, x: Tensor, t: Tensor) -> Prediction:
        """Read what the step leads to off an output `(B, 1, *S)` at `x` `(B, *S)` and times `t` `(B, 2)`."""
        return super().read(output, x, t[:, 0])
