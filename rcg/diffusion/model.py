"""A generative model is a network times a process, given a condition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rcg.config import GuidanceConfig, ModelConfig, SamplerConfig
from rcg.core.contracts import Net, Noise, Process, Space
from rcg.core.errors import UserError
from rcg.core.registry import PROCESSES, SAMPLERS
from rcg.core.rng import Scaled
from rcg.diffusion.alignment import Alignment
from rcg.diffusion.self_conditioning import SelfConditioned


class GenerativeModel(nn.Module):
    """A network and its process, with the learned null condition; calling it gives the training losses.

    Attributes:
        data: the space that it generates in.
        cond: the space of its condition, `None` when it has none.
        alignment: the extra loss of training with an encoder's patch tokens, `None` without.
    """

    def __init__(
        self,
        config: ModelConfig,
        network: nn.Module,
        process: Any,
        data: Space,
        cond: Space | None,
        alignment: Alignment | None = None,
    ) -> None:
        super().__init__()
        self.config, self.data, self.cond = config, data, cond
        self.network, self.process, self.alignment = network, process, alignment
        self.null: nn.Parameter | None = None
        if cond is not None and cond.vocab is None:
            # Without dropout nothing would ever reach it, for which several processes would wait.
            used = config.condition_dropout > 0
            self.null = nn.Parameter(0.02 * torch.randn(1, *cond.shape), requires_grad=used)

    def forward(self, x: Tensor, cond: Tensor | None, patches: Tensor | None = None) -> dict[str, Tensor]:
        """Return the losses of data `x` `(B, *S)` given `cond`, noised if configured, a share replaced by the null.

        With a frozen encoder's `patches` `(B, N, D)` of the same images, `align` is one of them.
        """
        cond = self._drop(self._blur(cond))
        if self.alignment is None or patches is None:
            return self._walk().loss(self.network, x, cond)
        inner: list[Tensor] = []

        def net(x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
            output, tokens = self.network(x, t, cond, inner=True)
            inner.append(tokens)
            return output

        losses = self._walk().loss(net, x, cond)
        # The last evaluation is the one with gradients: self-conditioning asks for an estimate first.
        return {**losses, "align": self.alignment(inner[-1], patches)}

    def null_like(self, cond: Tensor) -> Tensor:
        """Return the null condition in the shape of `cond` `(B, D)` or `(B,)`."""
        if self.null is None:
            labels: Any = self.cond
            return torch.full_like(cond, labels.vocab)  # the extra row of the label table
        return self.null.expand_as(cond).to(cond.dtype)

    def dropped(self, cond: Tensor) -> Tensor:
        """Draw which samples lose their condition: booleans `(B,)`."""
        return torch.rand(len(cond), device=cond.device) < self.config.condition_dropout

    def sample(
        self,
        cond: Tensor | None,
        noise: Noise,
        guidance: GuidanceConfig | None = None,
        steps: int | None = None,
        *,
        sampler: SamplerConfig | None = None,
        weak: Net | None = None,
        steer: Callable[[Process], Process] | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Draw `(B, *S)` samples given `cond`.

        Args:
            cond: `(B, D)` vectors, `(B,)` labels, or None.
            noise: where the draws come from.
            guidance: replaces the configured guidance.
            steps: replaces the configured number of network evaluations.
            sampler: replaces the configured sampler.
            weak: a worse model of the same space to guide away from, instead of from the null condition.
            steer: changes what the process predicts, `rcg.diffusion.guidance.Steered` for example.
            known: tokens `(B, *S)` to keep, `rcg.core.contracts.MASK` where they are to be generated.

        Raises:
            UserError: tokens are given to a model that does not generate tokens.
        """
        chosen = sampler or self.config.sampler
        if known is not None and not chosen.discrete:
            raise UserError(f"{self.config.name} cannot keep parts of an image: use a generator of tokens, mage")
        if steps is not None:
            chosen = chosen.model_copy(update={"steps": steps})
        walk = SAMPLERS.get(chosen.name)(chosen)
        net: Net = self.network
        guidance = guidance or self.config.guidance
        if guidance.scale != 1 and (cond is not None or weak is not None):
            null = None if cond is None or weak is not None else self.null_like(cond)
            net = Guided(self.network, null, guidance, self.process.horizon, weak, chosen.steps)
        if chosen.temperature != 1:
            noise = Scaled(noise, chosen.temperature)
        process = self._walk() if steer is None else steer(self._walk())
        kept = {} if known is None else {"known": known}
        return walk(process, net, self.data, cond, noise, **kept)

    def _walk(self) -> Any:
        """Return the process of one training step or of one walk from noise to data."""
        return SelfConditioned(self.process) if self.config.self_condition else self.process

    def _blur(self, cond: Tensor | None) -> Tensor | None:
        if cond is None or self.config.condition_noise == 0 or not cond.is_floating_point():
            return cond
        return cond + self.config.condition_noise * torch.randn_like(cond)

    def _drop(self, cond: Tensor | None) -> Tensor | None:
        if cond is None or self.config.condition_dropout == 0:
            return cond
        dropped = self.dropped(cond).view(-1, *[1] * (cond.ndim - 1))
        return torch.where(dropped, self.null_like(cond), cond)


RAMPS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: done,
    "cosine": lambda done: (1 - math.cos(math.pi * done)) / 2,
}
"""Strength of guidance as a function of the share of the walk that is done when a step ends."""


class Guided:
    """A net that extrapolates from a worse answer to a better one; it is a net itself, whatever is predicted.

    The worse answer is the same network's without its condition (classifier-free guidance, Ho and Salimans, 2022), or
    that of a weaker network (autoguidance, Karras et al., NeurIPS 2024), which needs no condition at all.
    """

    def __init__(
        self,
        net: Net,
        null: Tensor | None,
        guidance: GuidanceConfig,
        horizon: float,
        weak: Net | None = None,
        steps: float = math.inf,
    ) -> None:
        """Guide `net` away from `weak`, or from its own answer to `null` `(B, ...)`.

        Times run from 0 to `horizon`; a ramp is at its top in the last of the walk's `steps`.
        """
        self.net, self.null, self.weak, self.guidance = net, null, weak, guidance
        self.horizon, self.steps = horizon, steps
        self.low, self.high = (horizon * bound for bound in guidance.interval)

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        """Evaluate at `x` `(B, *S)` and one common time `t` `(B,)`."""
        time = float(t[0])
        if not self.low <= time <= self.high:
            return self.net(x, t, cond)
        if self.weak is not None:
            better, worse = self.net(x, t, cond), self.weak(x, t, cond)
        else:
            assert cond is not None
            assert self.null is not None
            both = self.net(torch.cat([x, x]), torch.cat([t, t]), torch.cat([cond, self.null]))
            better, worse = both.chunk(2)
        return self._extrapolate(better, worse, self.scale(time))

    def scale(self, time: float) -> float:
        """Return the scale of guidance at a time in [0, horizon]."""
        done = min(1.0, 1 - time / self.horizon + 1 / self.steps)
        return 1 + (self.guidance.scale - 1) * RAMPS[self.guidance.ramp](done)

    def _extrapolate(self, better: Tensor, worse: Tensor, scale: float) -> Tensor:
        """Guide what is predicted, the first head of `(B, heads, *S)`; a variance stays the better answer's."""
        guided = better.clone()
        chosen = (slice(None), 0, slice(self.guidance.channels))
        guided[chosen] = worse[chosen] + scale * (better[chosen] - worse[chosen])
        return guided


def build(
    config: ModelConfig, network: type[Any], data: Space, cond: Space | None, patches: Space | None = None
) -> GenerativeModel:
    """Build the network of `config` between the spaces that its neighbors define.

    Args:
        config: what a person chose.
        network: the class that `config` belongs to.
        data: the space to generate in.
        cond: the space of the condition.
        patches: the encoder's patch tokens `(rows, columns, D)`, for a generator that is aligned with them in training.

    Raises:
        UserError: the condition asked for does not exist here, the process is made for other data, or the network
            cannot do what is asked of it.
    """
    if (config.condition == "none") != (cond is None):
        raise UserError(f"{config.name}: condition is {config.condition!r}, but the neighbors offer {cond}")
    if config.process.discrete != (data.vocab is not None):
        kind = "real numbers" if data.vocab is None else "tokens"
        raise UserError(
            f"{config.name}: the process {config.process.name} cannot corrupt {kind}, which {data.id} gives"
        )
    process = PROCESSES.get(config.process.name)(config.process)
    built = network(config, data, cond, process.heads)
    if getattr(config, "checkpoint", False) and not hasattr(built, "checkpoint"):
        raise UserError(
            f"generator.grad_checkpointing is true, but {config.name} always keeps its activations: leave it out"
        )
    alignment = None
    if patches is not None:
        settings: Any = config
        alignment = Alignment(settings.align, built.width, patches)
    return GenerativeModel(config, built, process, data, cond, alignment)
