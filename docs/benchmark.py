"""Measure this software against the methods of the published code, as ratios in one run.

python docs/benchmark.py rdm-training --batch-size 1024   cached representations against a frozen ViT-B at every step
python docs/benchmark.py rdm-sampling --num 1000          few steps in one batch against 250 steps in batches of 16
python docs/benchmark.py training --generator mage        a generator's training steps, with and without frozen networks
python docs/benchmark.py sampling --generator dit         guided sampling with a generator

The published method of a generator is its arithmetic, at equal sizes: float32, attention written out with logits in
float32, torch's own dropout, tensors in their usual layout, no compilation. MAGE is 384 wide, 6 + 4 blocks, on 16 x 16
tokens; DiT is DiT-S/2 on latents of 32 x 32 x 4; ADM is 64 wide at 32 px. All are conditioned on representations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from rcg import cli
from rcg import nn as layers
from rcg.config import GuidanceConfig, SamplerConfig, TrainConfig
from rcg.core.contracts import Space
from rcg.core.registry import AUTOENCODERS, ENCODERS, GENERATORS, NETWORKS, SAMPLERS
from rcg.core.rng import SampleNoise
from rcg.diffusion.model import GenerativeModel, build
from rcg.distributed.launch import launch
from rcg.encoding.autoencoder import build_autoencoder
from rcg.encoding.encoder import build_encoder
from rcg.training.ema import EMA

ENCODED_IMAGES = 64
"""Images whose encoding is timed; its cost is proportional to their number."""
REPRESENTATION = Space((256,), id="random numbers")
SPACES = {
    "mage": Space((16, 16), vocab=1024, id="random tokens"),
    "dit": Space((4, 32, 32), id="random numbers"),
    "adm": Space((3, 32, 32), id="noise"),
}
SIZES: dict[str, dict[str, Any]] = {"mage": {}, "dit": {}, "adm": {"width": 64}}
PUBLISHED: dict[str, dict[str, Any]] = {"mage": {"min_encoder_tokens": 1.0}, "dit": {}, "adm": {}}
"""Settings with which the published code samples differently from ours."""
TRAINED_AUTOENCODERS = {"mage": "vqgan", "dit": "kl"}
"""The autoencoder that encodes images of 256 px at every published step."""
FROZEN = "frozen"


class Method(NamedTuple):
    """A function, and how many items it processes."""

    items: int
    run: Callable[[], Any]


Methods = dict[str, Method]


def main() -> None:
    """Parse the command line and measure."""
    parser = cli.parser_for(__doc__)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--generator", choices=SPACES, default="mage", help="generator to train or to sample [mage]")
    parser.add_argument("--batch-size", type=cli.batch_size, help="batch size of training [1024; of a generator 16]")
    parser.add_argument("--num", type=cli.count, help="number of samples [1000; images 8]")
    parser.add_argument("--steps", type=cli.count, default=8, help="network evaluations of our sampling [8]")
    parser.add_argument("--compile", action="store_true", help="measure compiled generators too")
    known = [name for name in SAMPLERS.names() if not SAMPLERS.get(name).discrete]
    parser.add_argument("--sampler", choices=known, default="unipc", help="our sampler of representations [unipc]")
    parser.add_argument("--repeats", type=cli.count, default=3, help="interleaved runs; their median counts [3]")
    parser.add_argument("--fp32", action="store_true", help="ours without bf16")
    cli.main(parser, measure)


def measure(arguments: argparse.Namespace) -> None:
    """Time the methods in turns, and print medians and their ratio."""
    device = launch().device
    methods: Methods = SUBJECTS[arguments.subject](arguments, device)
    for method in methods.values():
        method.run()  # compile, allocate
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(arguments.repeats):
        for name, method in methods.items():
            start = time.perf_counter()
            method.run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    rates = _combine({name: method.items / statistics.median(seconds[name]) for name, method in methods.items()})
    first = next(iter(rates.values()))
    for name, rate in rates.items():
        print(f"{name:56} {rate:12.2f} /s   x {rate / first:.1f}")


def _combine(rates: dict[str, float]) -> dict[str, float]:
    """Add up a published training step: the passes of frozen networks, then its own, one after the other."""
    frozen = [rates.pop(name) for name in list(rates) if name.startswith(FROZEN)]
    if not frozen:
        return rates
    step = next(iter(rates.values()))
    return {"published: frozen networks at every step, fp32": 1 / sum(1 / rate for rate in [*frozen, step])} | rates


def _rdm(device: torch.device) -> GenerativeModel:
    network = NETWORKS.get("rep_mlp")
    model = build(network.Config(), network, Space((256,)), None).to(device)
    for name, parameter in model.named_parameters():  # the zero of its last layers would make all of it trivial
        if "output" in name or "linear_out" in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def _step(
    model: GenerativeModel, batch: Tensor, bf16: bool, compiled: bool, cond: Tensor | None = None
) -> Callable[[], Any]:
    """Return one optimizer step with its average, as the training loop takes it."""
    config = TrainConfig(lr=5e-4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, fused=bf16 or compiled)
    average = EMA(model, 0.9999)
    if compiled:
        model.network.compile()

    def run() -> None:
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
            loss = sum(model(batch, cond).values(), torch.zeros((), device=batch.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model)

    return run


def _precision(arguments: argparse.Namespace) -> str:
    return "fp32" if arguments.fp32 else "bf16"


def _rdm_training(arguments: argparse.Namespace, device: torch.device) -> Methods:
    batch = torch.randn(arguments.batch_size or 1024, 256, device=device)
    eager = _step(_rdm(device), batch, bf16=False, compiled=False)
    compiled = _step(_rdm(device), batch, bf16=not arguments.fp32, compiled=True)
    return {
        **_frozen_encoder(ENCODED_IMAGES, device),
        "cached representations, fp32, eager": Method(len(batch), eager),
        f"cached representations, {_precision(arguments)}, compiled": Method(len(batch), compiled),
    }


def _frozen_encoder(count: int, device: torch.device) -> Methods:
    config = ENCODERS.get("moco_v3").Config(arch="vit_base", weights="none")
    encoder = build_encoder(config, 256).eval().requires_grad_(False).to(device)
    image = torch.rand(count, 3, 256, 256, device=device)
    return {f"{FROZEN} ViT-B": Method(count, torch.no_grad()(lambda: encoder(image)))}


def _frozen_autoencoder(name: str, count: int, device: torch.device) -> Methods:
    autoencoder = build_autoencoder(AUTOENCODERS.get(name).Config(), 256).freeze().to(device)
    image = torch.rand(count, 3, 256, 256, device=device)
    return {f"{FROZEN} {name}": Method(count, torch.no_grad()(lambda: autoencoder.encode(image)))}


def _rdm_sampling(arguments: argparse.Namespace, device: torch.device) -> Methods:
    model = _rdm(device).eval().requires_grad_(False)

    def sampling(sampler: SamplerConfig, count: int, bf16: bool) -> Method:
        def run() -> Tensor:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                return model.sample(None, SampleNoise(0, range(count), "rdm", device), sampler=sampler)

        return Method(count, run)

    published = SAMPLERS.get("ddim")(steps=250, eta=1.0, spacing="rcg")
    ours = SAMPLERS.get(arguments.sampler)(steps=arguments.steps)
    ours.check(model.process)
    name = f"{arguments.sampler}, {arguments.steps} steps, one batch, {_precision(arguments)}"
    return {
        "published: ddim, 250 steps, batches of 16, fp32": sampling(published, 16, bf16=False),
        name: sampling(ours, arguments.num or 1000, not arguments.fp32),
    }


def _generator(name: str, device: torch.device, **changed: Any) -> GenerativeModel:
    network = GENERATORS.get(name)
    config = network.Config(condition="representation", **SIZES[name], **changed)
    model = build(config, network, SPACES[name], REPRESENTATION).to(device)
    for parameter in model.parameters():  # zeros would make some of it trivial
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model


def _as_published(model: GenerativeModel, run: Callable[[], Any]) -> Callable[[], Any]:
    """Let `run` evaluate `model` by the arithmetic of the published code."""
    model.to(memory_format=torch.contiguous_format)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))

    def published() -> None:
        with patch.multiple(layers, attend=written_out, dropout=nn.functional.dropout):
            run()

    return published


def written_out(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, key_mask: None = None) -> Tensor:
    """Attend to all keys, with logits in float32 from which their maximum is subtracted first."""
    logits = q.float() @ k.float().transpose(-2, -1) * q.shape[-1] ** -0.5
    weights = (logits - logits.amax(dim=-1, keepdim=True)).softmax(dim=-1)
    return (nn.functional.dropout(weights, dropout_p) if dropout_p else weights) @ v


def _training(arguments: argparse.Namespace, device: torch.device) -> Methods:
    name, count = arguments.generator, arguments.batch_size or 16
    space = SPACES[name]
    shape = (count, *space.shape)
    if space.vocab is None:
        batch = torch.randn(shape, device=device)
    else:
        batch = torch.randint(space.vocab, shape, device=device)
    cond = torch.randn(count, *REPRESENTATION.shape, device=device)

    def step(bf16: bool, compiled: bool = False) -> tuple[GenerativeModel, Callable[[], Any]]:
        model = _generator(name, device).train()
        return model, _step(model, batch, bf16, compiled, cond)

    methods = _frozen_encoder(4, device)
    if name in TRAINED_AUTOENCODERS:
        methods |= _frozen_autoencoder(TRAINED_AUTOENCODERS[name], 2, device)
    methods[f"published: {name} alone, fp32"] = Method(count, _as_published(*step(bf16=False)))
    ours = f"{name} from caches, {_precision(arguments)}"
    methods[ours] = Method(count, step(not arguments.fp32)[1])
    if arguments.compile:
        methods[f"{ours}, compiled"] = Method(count, step(not arguments.fp32, compiled=True)[1])
    return methods


def _sampling(arguments: argparse.Namespace, device: torch.device) -> Methods:
    name, count, steps = arguments.generator, arguments.num or 8, arguments.steps
    cond = torch.randn(count, *REPRESENTATION.shape, device=device)

    def sampling(bf16: bool, compiled: bool = False, **changed: Any) -> tuple[GenerativeModel, Callable[[], Any]]:
        model = _generator(name, device, **changed).eval().requires_grad_(False)
        if compiled:
            model.network.compile()
        sampler = model.config.sampler.with_steps(steps)

        def run() -> None:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                noise = SampleNoise(0, range(count), "generator", device)
                model.sample(cond, noise, guidance=GuidanceConfig(scale=2), sampler=sampler)

        return model, run

    bf16, ours = not arguments.fp32, f"{name}, {steps} steps, {_precision(arguments)}"
    published = _as_published(*sampling(bf16=False, **PUBLISHED[name]))
    methods = {
        f"published: {name}, {steps} steps, fp32": Method(count, published),
        ours: Method(count, sampling(bf16)[1]),
    }
    if PUBLISHED[name]:
        settings = ", ".join(f"{key}={value}" for key, value in PUBLISHED[name].items()).lower()
        methods[f"{ours}, {settings}"] = Method(count, sampling(bf16, **PUBLISHED[name])[1])
    if arguments.compile:
        methods[f"{ours}, compiled"] = Method(count, sampling(bf16, compiled=True)[1])
    return methods


SUBJECTS: dict[str, Callable[[argparse.Namespace, torch.device], Methods]] = {
    "rdm-training": _rdm_training,
    "rdm-sampling": _rdm_sampling,
    "training": _training,
    "sampling": _sampling,
}

if __name__ == "__main__":
    main()
