"""Measure what this software does against the way of the published code, as ratios in one run.

python tools/benchmark.py rdm-training --batch-size 1024   cached representations against a frozen ViT-B at every step
python tools/benchmark.py rdm-sampling --num 1000          few steps in one batch against 250 steps in batches of 16
python tools/benchmark.py training --generator mage        a generator's steps, with and without frozen networks
python tools/benchmark.py sampling --generator dit         a generator's walks with guidance

The published way of a generator is its arithmetic, at equal sizes: float32, attention written out with logits in
float32, torch's own dropout, tensors in their usual layout, no compilation. MAGE is 384 wide, 6 + 4 blocks, on 16 x 16
tokens; DiT is DiT-S/2 on latents of 32 x 32 x 4; ADM is 64 wide at 32 px. All are told representations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from rcg import cli
from rcg import nn as layers
from rcg.config import GuidanceConfig, TrainConfig
from rcg.core.contracts import Space
from rcg.core.registry import AUTOENCODERS, ENCODERS, GENERATORS, NETWORKS, SAMPLERS
from rcg.core.rng import Streams
from rcg.diffusion.model import GenerativeModel, build
from rcg.distributed import launch as parallel
from rcg.training.ema import EMA

ENCODED = 64
"""Images whose encoding is timed; its cost is proportional to their number."""
REPRESENTATION = Space((256,), id="random numbers")
LATENTS = Space((4, 32, 32), id="random numbers")
SPACES = {
    "mage": Space((16, 16), vocab=1024, id="random tokens"),
    "dit": LATENTS,
    "adm": Space((3, 32, 32), id="noise"),
}
SIZES: dict[str, dict[str, Any]] = {"mage": {}, "dit": {}, "adm": {"width": 64}}
PUBLISHED: dict[str, dict[str, Any]] = {"mage": {"min_encoder_tokens": 1.0}, "dit": {}, "adm": {}}
"""What is sampled in another way than ours."""
FIRST_STAGES = {"mage": "vqgan", "dit": "kl"}
"""What encodes images of 256 px at every published step."""

Ways = dict[str, tuple[int, Callable[[], Any]]]
"""How many things a function makes, and the function, by name."""


def main() -> None:
    """Parse the command line and measure."""
    parser = cli.parser_for(__doc__ or "")
    parser.add_argument("what", choices=WAYS)
    parser.add_argument("--generator", choices=SPACES, default="mage", help="what is trained or sampled from [mage]")
    parser.add_argument("--batch-size", type=cli.positive, help="of a training step [1024; of a generator's 16]")
    parser.add_argument("--num", type=cli.positive, help="things to sample [1000; images 8]")
    parser.add_argument("--steps", type=cli.positive, default=8, help="network evaluations of our sampling [8]")
    parser.add_argument("--compile", action="store_true", help="a third way: generators compiled")
    parser.add_argument("--sampler", default="unipc", help="our sampler [unipc]")
    parser.add_argument("--repeats", type=cli.positive, default=3, help="interleaved runs, of which medians count [3]")
    parser.add_argument("--fp32", action="store_true", help="ours without bf16")
    cli.main(parser, measure)


def measure(arguments: argparse.Namespace) -> None:
    """Time both ways in turns and print medians and their ratio."""
    device = parallel.start().device
    ways = WAYS[arguments.what](arguments, device)
    for _, run in ways.values():
        run()  # compile, allocate
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, (_, run) in ways.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    rates = {name: count / statistics.median(seconds[name]) for name, (count, _) in ways.items()}
    rates = _combine(rates)
    first = next(iter(rates.values()))
    for name, rate in rates.items():
        print(f"{name:56} {rate:12.2f} /s   x {rate / first:.1f}")


def _combine(rates: dict[str, float]) -> dict[str, float]:
    """A published training step is the passes of frozen networks, then its own, one after the other."""
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
            torch.nn.init.normal_(parameter, std=0.02)
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
            loss = sum(model(batch, cond).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model)

    return run


def _rdm_training(arguments: argparse.Namespace, device: torch.device) -> Ways:
    batch = torch.randn(arguments.batch_size or 1024, 256, device=device)
    precision = "fp32" if arguments.fp32 else "bf16"
    return {
        **_frozen_encoder(ENCODED, device),
        "cached representations, fp32, eager": (
            len(batch),
            _step(_rdm(device), batch, bf16=False, compiled=False),
        ),
        f"cached representations, {precision}, compiled": (
            len(batch),
            _step(_rdm(device), batch, bf16=not arguments.fp32, compiled=True),
        ),
    }


def _frozen_encoder(count: int, device: torch.device) -> Ways:
    moco = ENCODERS.get("moco_v3")
    encoder = moco(moco.Config(arch="vit_base", weights="none")).eval().requires_grad_(False).to(device)
    image = torch.rand(count, 3, 256, 256, device=device)
    return {f"{FROZEN} ViT-B": (count, torch.no_grad()(lambda: encoder(image)))}


def _frozen_first_stage(name: str, count: int, device: torch.device) -> Ways:
    first_stage = AUTOENCODERS.get(name)
    model = first_stage(first_stage.Config(), 256).eval().requires_grad_(False).to(device)
    image = torch.rand(count, 3, 256, 256, device=device)
    return {f"{FROZEN} {name}": (count, torch.no_grad()(lambda: model.encode(image)))}


def _rdm_sampling(arguments: argparse.Namespace, device: torch.device) -> Ways:
    model = _rdm(device).eval().requires_grad_(False)

    def draw(sampler: Any, count: int, bf16: bool) -> Callable[[], Any]:
        def run() -> Tensor:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                noise = Streams(0, range(count), "rdm", device)
                return sampler(model.process, model.network, model.data, None, noise)

        return run

    published = SAMPLERS.get("ddim")(SAMPLERS.get("ddim").Config(steps=250, eta=1.0, spacing="rcg"))
    ours = SAMPLERS.get(arguments.sampler)
    name = f"{arguments.sampler}, {arguments.steps} steps, one batch, {'fp32' if arguments.fp32 else 'bf16'}"
    few = draw(ours(ours.Config(steps=arguments.steps)), arguments.num or 1000, not arguments.fp32)
    return {
        "published: ddim, 250 steps, batches of 16, fp32": (16, draw(published, 16, bf16=False)),
        name: (arguments.num or 1000, few),
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


def written_out(q: Tensor, k: Tensor, v: Tensor, dropped: float = 0.0, seen: None = None) -> Tensor:
    """Attend with logits in float32, from which their maximum is taken first; all keys are seen."""
    logits = q.float() @ k.float().transpose(-2, -1) * q.shape[-1] ** -0.5
    weights = (logits - logits.amax(dim=-1, keepdim=True)).softmax(dim=-1)
    return (nn.functional.dropout(weights, dropped) if dropped else weights) @ v


def _training(arguments: argparse.Namespace, device: torch.device) -> Ways:
    name, count = arguments.generator, arguments.batch_size or 16
    space = SPACES[name]
    shape = (count, *space.shape)
    batch = (
        torch.randn(shape, device=device) if space.vocab is None else torch.randint(space.vocab, shape, device=device)
    )
    cond = torch.randn(count, *REPRESENTATION.shape, device=device)

    def step(bf16: bool, compiled: bool = False) -> tuple[GenerativeModel, Callable[[], Any]]:
        model = _generator(name, device).train()
        return model, _step(model, batch, bf16, compiled, cond)

    ways = {**_frozen_encoder(4, device)}
    if name in FIRST_STAGES:
        ways |= _frozen_first_stage(FIRST_STAGES[name], 2, device)
    ways |= {f"published: {name} alone, fp32": (count, _as_published(*step(bf16=False)))}
    precision = "fp32" if arguments.fp32 else "bf16"
    ways |= {f"{name} from caches, {precision}": (count, step(not arguments.fp32)[1])}
    if arguments.compile:
        ways |= {f"{name} from caches, {precision}, compiled": (count, step(not arguments.fp32, compiled=True)[1])}
    return ways


def _sampling(arguments: argparse.Namespace, device: torch.device) -> Ways:
    name, count, steps = arguments.generator, arguments.num or 8, arguments.steps
    cond = torch.randn(count, *REPRESENTATION.shape, device=device)

    def walk(bf16: bool, compiled: bool = False, **changed: Any) -> tuple[GenerativeModel, Callable[[], Any]]:
        model = _generator(name, device, **changed).eval().requires_grad_(False)
        if compiled:
            model.network.compile()

        def run() -> None:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                noise = Streams(0, range(count), "generator", device)
                model.sample(cond, noise, GuidanceConfig(scale=2), steps)

        return model, run

    precision = "fp32" if arguments.fp32 else "bf16"
    ways = {
        f"published: {name}, {steps} steps, fp32": (count, _as_published(*walk(bf16=False, **PUBLISHED[name]))),
        f"{name}, {steps} steps, {precision}": (count, walk(not arguments.fp32)[1]),
    }
    if PUBLISHED[name]:
        words = ", ".join(f"{key}={value}" for key, value in PUBLISHED[name].items()).lower()
        ways |= {
            f"{name}, {steps} steps, {precision}, {words}": (count, walk(not arguments.fp32, **PUBLISHED[name])[1])
        }
    if arguments.compile:
        ways |= {f"{name}, {steps} steps, {precision}, compiled": (count, walk(not arguments.fp32, compiled=True)[1])}
    return ways


FROZEN = "frozen"
WAYS = {
    "rdm-training": _rdm_training,
    "rdm-sampling": _rdm_sampling,
    "training": _training,
    "sampling": _sampling,
}

if __name__ == "__main__":
    main()
