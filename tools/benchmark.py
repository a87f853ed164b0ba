"""Measure what this software does against the way of the published code, as ratios in one run.

python tools/benchmark.py rdm-training --batch-size 1024    cached representations against a frozen ViT-B at every step
python tools/benchmark.py rdm-sampling --num 1000           few steps in one batch against 250 steps in batches of 16
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rcg import cli, parallel
from rcg.config import TrainConfig
from rcg.contracts import Space
from rcg.model import GenerativeModel, build
from rcg.randomness import Streams
from rcg.registry import ENCODERS, NETWORKS, SAMPLERS
from rcg.train import EMA

ENCODED = 64
"""Images whose encoding is timed; its cost is proportional to their number."""


def main() -> None:
    """Parse the command line and measure."""
    parser = cli.parser_for(__doc__ or "")
    parser.add_argument("what", choices=["rdm-training", "rdm-sampling"])
    parser.add_argument("--batch-size", type=cli.positive, default=1024, help="of a training step [1024]")
    parser.add_argument("--num", type=cli.positive, default=1000, help="representations to sample [1000]")
    parser.add_argument("--steps", type=cli.positive, default=8, help="network evaluations of our sampling [8]")
    parser.add_argument("--sampler", default="unipc", help="our sampler [unipc]")
    parser.add_argument("--repeats", type=cli.positive, default=3, help="interleaved runs, of which medians count [3]")
    parser.add_argument("--fp32", action="store_true", help="ours without bf16")
    cli.main(parser, measure)


def measure(arguments: argparse.Namespace) -> None:
    """Time both ways in turns and print medians and their ratio."""
    device = parallel.start().device
    ways = (_training if arguments.what == "rdm-training" else _sampling)(arguments, device)
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
    """The published training step is an encoder's pass and an RDM's step, one after the other."""
    if "frozen ViT-B" not in rates:
        return rates
    encode, step = rates.pop("frozen ViT-B"), rates.pop("RDM step, fp32")
    both = {"published: ViT-B at every step, fp32, eager": 1 / (1 / encode + 1 / step)}
    return both | {"cached representations, fp32, eager": step} | rates


def _rdm(device: torch.device) -> GenerativeModel:
    network = NETWORKS.get("rep_mlp")
    model = build(network.Config(), network, Space((256,)), None).to(device)
    for name, parameter in model.named_parameters():  # the zero of its last layers would make all of it trivial
        if "output" in name or "linear_out" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def _step(model: GenerativeModel, batch: Tensor, bf16: bool, compiled: bool) -> Callable[[], Any]:
    """Return one optimiser step with its average, as the training loop takes it."""
    config = TrainConfig(lr=5e-4)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, fused=compiled)
    average = EMA(model, 0.9999)
    if compiled:
        model.network.compile()

    def run() -> None:
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
            loss = sum(model(batch, None).values())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        average.update(model)

    return run


def _training(arguments: argparse.Namespace, device: torch.device) -> dict[str, tuple[int, Callable[[], Any]]]:
    moco = ENCODERS.get("moco_v3")
    encoder = moco(moco.Config(arch="vit_base", weights="none")).eval().requires_grad_(False).to(device)
    image = torch.rand(ENCODED, 3, 256, 256, device=device)
    batch = torch.randn(arguments.batch_size, 256, device=device)
    precision = "fp32" if arguments.fp32 else "bf16"
    return {
        "frozen ViT-B": (ENCODED, torch.no_grad()(lambda: encoder(image))),
        "RDM step, fp32": (len(batch), _step(_rdm(device), batch, bf16=False, compiled=False)),
        f"cached representations, {precision}, compiled": (
            len(batch),
            _step(_rdm(device), batch, bf16=not arguments.fp32, compiled=True),
        ),
    }


def _sampling(arguments: argparse.Namespace, device: torch.device) -> dict[str, tuple[int, Callable[[], Any]]]:
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
    few = draw(ours(ours.Config(steps=arguments.steps)), arguments.num, not arguments.fp32)
    return {
        "published: ddim, 250 steps, batches of 16, fp32": (16, draw(published, 16, bf16=False)),
        name: (arguments.num, few),
    }


if __name__ == "__main__":
    main()
