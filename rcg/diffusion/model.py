"""A generative model is a network times a process, given a condition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rcg.config import GeneratorConfig, GuidanceConfig, ModelConfig, SamplerConfig, parse_saved_config
from rcg.core import checkpoint
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import EARLY, Denoiser, Interface, Level, Net, Noise, Process, Space
from rcg.core.errors import UserError
from rcg.core.registry import PROCESSES, Registry
from rcg.core.rng import ScaledNoise, draws
from rcg.diffusion.estimate_loss import EstimateLoss, WithEstimateLoss
from rcg.diffusion.guidance import Autoguided, Guided
from rcg.diffusion.inversion import invert, noising
from rcg.diffusion.joint_representation import JointLoss, Pair
from rcg.diffusion.repaint import Resampling, repaint
from rcg.diffusion.self_conditioning import SelfConditioned


class Standardized(Denoiser):
    """A network conditioned on z that learned from representations as they were: z = (representation - mean) / std."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Denoiser, mean: Tensor, std: Tensor) -> None:
        """Wrap `network`; mean and std are `(D,)`."""
        nn.Module.__init__(self)
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Denoise as the network does, given z `(B, D)`."""
        output: Tensor = self.network(x, t, None if cond is None else cond * self.std + self.mean)
        return output

    def bottleneck(self, block: int | None = None) -> nn.Module:
        """Return that of the network."""
        return self.network.bottleneck(block)


class GenerativeModel(nn.Module):
    """A network and its process, with the learned null condition; calling it returns the training losses.

    Attributes:
        config: process, condition, sampler and guidance.
        network: the denoiser.
        process: how data is corrupted, and what the network predicts.
        data: the space of the images or latents that it generates.
        cond: the space of its condition, `None` when it has none.
        pair: the data, and the representation that is generated together with it; `None`: the data alone.
        null: the learned null of a vector condition; a label's null is the last row of its table.
        weak: a worse model that samples are guided away from, if `sample` is given no other; see there.
    """

    def __init__(
        self,
        config: ModelConfig,
        network: Denoiser,
        process: Any,
        data: Space,
        cond: Space | None,
        pair: Pair | None = None,
    ) -> None:
        super().__init__()
        self.config, self.data, self.cond, self.pair = config, data, cond, pair
        self.network, self.process = network, process
        self.null: nn.Parameter | None = None
        self.weak: GenerativeModel | None = None
        if cond is not None and cond.vocab is None:
            # Without dropout no gradient would ever reach it, for which several processes would wait.
            is_used = config.condition_dropout > 0
            self.null = nn.Parameter(0.02 * torch.randn(1, *cond.shape), requires_grad=is_used)

    def forward(self, x: Tensor, cond: Tensor | None, estimate_loss: EstimateLoss | None = None) -> dict[str, Tensor]:
        """Return the losses of data `x` `(B, *S)` given `cond`, noised if configured, a share replaced by the null.

        `estimate_loss` adds losses of the estimate of clean data; the network is evaluated no more often.
        """
        process = self.process if self.pair is None else JointLoss(self.process, self.pair)
        if estimate_loss is not None:
            process = WithEstimateLoss(process, estimate_loss)
        losses: dict[str, Tensor] = self.with_estimate(process).loss(self.network, x, self._drop(self._blur(cond)))
        weight = self.config.exit_weight
        if weight is None:
            return losses
        return {name: weight * loss if name.startswith(EARLY) else loss for name, loss in losses.items()}

    @property
    def spaces(self) -> dict[str, Space | None]:
        """The spaces of its neighbors, as `rcg.core.checkpoint.Facts` names them."""
        return {"data": self.data, "cond": self.cond, "z": None if self.pair is None else self.pair.z}

    @property
    def space(self) -> Space:
        """The space S in which it works: of the data, or of the vectors of `pair`."""
        return self.data if self.pair is None else self.pair.space

    def split(self, sample: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the images or latents in samples `(B, *S)`, and z `(B, D)` where it is generated with them."""
        return (sample, None) if self.pair is None else self.pair.split(sample)

    def null_like(self, cond: Tensor) -> Tensor:
        """Return the null condition in the shape of `cond` `(B, D)` or `(B,)`."""
        if self.null is None:
            assert self.cond is not None
            assert self.cond.vocab is not None
            return torch.full_like(cond, self.cond.vocab)  # the extra row of the label table
        return self.null.expand_as(cond).to(cond.dtype)

    def dropped(self, cond: Tensor) -> Tensor:
        """Draw which samples lose their condition: booleans `(B,)`."""
        return draws().uniform((len(cond),), cond.device) < self.config.condition_dropout

    def sample(
        self,
        cond: Tensor | None,
        noise: Noise,
        *,
        guidance: GuidanceConfig | None = None,
        sampler: SamplerConfig | None = None,
        weak: GenerativeModel | None = None,
        wrap_process: Callable[[Process], Process] | None = None,
        known: Tensor | None = None,
        resampling: Resampling | None = None,
    ) -> Tensor:
        """Generate `(B, *S)` samples given `cond`.

        Args:
            cond: `(B, D)` vectors, `(B,)` labels, or None; of a pair, the representations to keep, or None.
            noise: the source of random draws.
            guidance: replaces the configured guidance; without `cond`, `weak` or an early exit it has no effect.
            sampler: replaces the configured sampler.
            weak: a worse model of the same data and condition to guide away from, instead of what the guidance says;
                network, process and self-conditioning may differ. None: the model's own `weak`.
            wrap_process: changes what the process predicts, to `rcg.diffusion.guidance.ClassifierGuided` for example.
            known: data to keep, of a pair without its z; where it is to be generated, tokens are
                `rcg.core.contracts.MASK` and real numbers NaN.
            resampling: how generated real numbers are fitted to known ones; None: as `Resampling` does by default.

        Raises:
            UserError: `weak` models something else, or `known` is no data of this model.
        """
        sampler, guidance = sampler or self.config.sampler, guidance or self.config.guidance
        net: Net = self.network
        process = self.process
        weak = weak or self.weak
        if self.pair is not None:
            known, cond = self.pair.known(known, cond), None
        if guidance.scale != 1 and weak is not None:
            self.check_weak(weak)
            process = Autoguided(process, weak.with_estimate(weak.process), weak.network, guidance, sampler.steps)
        elif guidance.scale != 1 and guidance.against == "early_exit":
            net = Guided(self.network, None, guidance, self.process.horizon, sampler.steps)
        elif guidance.scale != 1 and cond is not None:
            net = Guided(self.network, self.null_like(cond), guidance, self.process.horizon, sampler.steps)
        if sampler.temperature != 1:
            noise = ScaledNoise(noise, sampler.temperature)
        if wrap_process is not None:
            process = wrap_process(process)
        process = self.with_estimate(process)
        if known is not None and known.is_floating_point() == sampler.discrete:
            raise UserError(f"{self.config.name} generates {self.data}: it cannot keep {known.dtype}")
        if known is not None and not sampler.discrete:
            return repaint(sampler, process, net, self.space, cond, noise, known, resampling or Resampling())
        options = {} if known is None else {"known": known}
        return sampler(process, net, self.space, cond, noise, **options)

    def invert(self, x: Tensor, cond: Tensor | None, levels: Sequence[Level], iterations: int = 4) -> Tensor:
        """Return the noise `(B, *S)` from which DDIM without fresh noise leads to `x` `(B, *S)`, without guidance.

        See `rcg.diffusion.inversion.invert`. With self-conditioning the way back sees other estimates than the way
        there, and only comes close.
        """
        return invert(self.with_estimate(self.process), self.network, x, cond, levels, iterations)

    def noising(
        self, x: Tensor, cond: Tensor | None, levels: Sequence[Level], iterations: int = 4
    ) -> Iterator[tuple[Level, Tensor, Tensor]]:
        """Yield the levels of `invert`, cleanest first, x_t `(B, *S)` at each, and the estimate of clean data there."""
        process = self.with_estimate(self.process)
        for level, x_t in noising(process, self.network, x, cond, levels, iterations):
            yield level, x_t, process.predict(self.network, x_t, level, cond).x0

    def check_weak(self, weak: GenerativeModel) -> None:
        """Raise `UserError` if samples cannot be guided away from those of `weak`, which models something else."""
        for what, own, other in (("data", self.space, weak.space), ("a condition", self.cond, weak.cond)):
            if own != other:
                raise UserError(
                    f"a weaker model to guide away from needs {what} of {own or 'no space'}, but this one has "
                    f"{other or 'none'}: train it with the same encoder and condition"
                )

    def standardized(self, z: Space, mean: Tensor, std: Tensor) -> GenerativeModel:
        """Return this model, which is conditioned on representations as they were, as one of z.

        Args:
            z: the space of the representations' z = (representation - mean) / std.
            mean: of the representations, `(D,)`.
            std: of the representations, `(D,)`.
        """
        model = GenerativeModel(self.config, Standardized(self.network, mean, std), self.process, self.data, z)
        assert self.null is not None
        model.null = nn.Parameter((self.null.detach() - mean) / std, requires_grad=False)
        return model.eval()

    def with_estimate(self, process: Any) -> Any:
        """Return a process for one training step or one run of a sampler, self-conditioned if so configured."""
        return SelfConditioned(process) if self.config.self_condition else process

    def _blur(self, cond: Tensor | None) -> Tensor | None:
        if cond is None or self.config.condition_noise == 0 or not cond.is_floating_point():
            return cond
        return cond + self.config.condition_noise * draws().normal(cond.shape, cond.device).to(cond.dtype)

    def _drop(self, cond: Tensor | None) -> Tensor | None:
        if cond is None or self.config.condition_dropout == 0:
            return cond
        dropped = self.dropped(cond).view(-1, *[1] * (cond.ndim - 1))
        return torch.where(dropped, self.null_like(cond), cond)


def build(
    config: ModelConfig, network: type[Denoiser], data: Space, cond: Space | None, z: Space | None = None
) -> GenerativeModel:
    """Build the model of `config` between the spaces that its neighbors define.

    Args:
        config: what a person chose.
        network: the class that `config` belongs to.
        data: the space to generate in.
        cond: the space of the condition.
        z: the space of the representation that is generated together with the data.

    Raises:
        UserError: the condition asked for does not exist here, the process is made for other data, or the network
            lacks a capability that is asked of it, or does not say what muon is to train.
    """
    if (config.condition == "none") != (cond is None):
        raise UserError(f"{config.name}: condition is {config.condition!r}, but the neighbors offer {cond}")
    if config.process.discrete != (data.vocab is not None):
        kind = "real numbers" if data.vocab is None else "tokens"
        raise UserError(f"{config.name}: the process {config.process.name} cannot corrupt {kind} of {data.id}")
    missing = sorted(config.requirements - network.capabilities)
    if missing:
        raise UserError(
            f"{config.name} does not support {', '.join(missing)}: set it to false or null, or choose another network"
        )
    if config.process.times > 1 and "two_times" not in network.capabilities:
        raise UserError(
            f"{config.name} takes one time, but the process {config.process.name} has two: choose another process, or "
            f"another network"
        )
    process = PROCESSES.get(config.process.name)(config.process.for_data(data))
    inputs = 2 if config.self_condition else 1
    pair = _pair(config, data, z)
    denoiser = network(config, Interface(data, cond, process.outputs, inputs, config.process.times, z))
    if config.train.optimizer == "muon":
        denoiser.hidden_matrices()  # refuses, before anything is written, what the optimizer would ask for
    return GenerativeModel(config, denoiser, process, data, cond, pair)


def _pair(config: ModelConfig, data: Space, z: Space | None) -> Pair | None:
    if not isinstance(config, GeneratorConfig) or not config.joint_representation:
        return None
    if z is None:
        raise UserError(f"{config.name}: joint_representation is true, but the neighbors offer no representation")
    return Pair(data, z, config.joint_weight)


def model_part(kind: str, model: GenerativeModel, facts: Facts) -> Part:
    """Describe a generative model so that `restore` builds it again from one file."""
    facts = facts.model_copy(update=model.spaces)
    return Part(kind, model.config.model_dump(mode="json"), facts, model.state_dict())


def restore(part: Part, registry: Registry) -> GenerativeModel:
    """Rebuild a generative model, frozen, from its part and the registry that knows its network.

    Raises:
        UserError: config, facts and tensors do not belong together.
    """

    def build_described() -> GenerativeModel:
        config = parse_saved_config(registry, part.kind, part.config)
        if part.facts.data is None:
            raise UserError("facts.data is missing: a generative model has a space that it works in")
        return build(config, registry.get(config.name), part.facts.data, part.facts.cond, part.facts.z)

    return checkpoint.rebuild(part, build_described).eval().requires_grad_(False)
