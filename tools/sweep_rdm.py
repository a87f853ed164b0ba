"""Find the cheapest good sampler of a trained RDM: rep-FD, beside its floor, over samplers and numbers of steps.

python tools/sweep_rdm.py configs/cifar10.yaml [section.key=value ...] --steps 8 16 32 250
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor
from tqdm import tqdm

from rcg import cli, config
from rcg.config import SamplerConfig
from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.core.registry import NETWORKS, SAMPLERS
from rcg.core.rng import Streams
from rcg.diffusion.model import GenerativeModel
from rcg.distributed import launch as parallel
from rcg.encoding.workspace import real_representations
from rcg.metrics.frechet import frechet_distance
from rcg.pipeline import restore

BATCH = 1000


def main() -> None:
    """Parse the command line and sweep."""
    parser = cli.parser_for(__doc__ or "", epilog=config.describe)
    cli.add_experiment(parser)
    parser.add_argument("--samplers", nargs="+", help="which ones [all that the RDM can use]")
    parser.add_argument(
        "--steps", nargs="+", type=cli.positive, default=[4, 8, 16, 32, 64], help="how many [4 8 16 32 64]"
    )
    parser.add_argument("--num", type=cli.positive, default=5000, help="representations, at most those held out [5000]")
    parser.add_argument("--seed", type=cli.natural, default=0, help="of the draws [0]")
    cli.main(parser, sweep)


@torch.inference_mode()
def sweep(arguments: argparse.Namespace) -> None:
    """Write and print samplers.md: one row per sampler, one column per number of steps."""
    experiment = config.load(arguments.config, arguments.overrides)
    device = parallel.start().device
    rdm = restore(checkpoint.load(experiment.run / "rdm" / checkpoint.FILE), NETWORKS).to(device)
    if rdm.cond is not None and rdm.cond.vocab is None:
        raise UserError("the RDM is told vectors, for which there is no sweep: use tools/sample_rdm.py --vectors FILE")
    real = real_representations(experiment, rdm.data)
    count = min(arguments.num, len(real.held_out_z), len(real.z))
    chosen = torch.randperm(len(real.z), generator=torch.Generator().manual_seed(0))[:count]
    held_out = real.held_out_z[:count]
    cond = None if real.train.labels is None or rdm.cond is None else real.train.labels[chosen].to(device)
    own = rdm.config.sampler
    names = arguments.samplers or [name for name in SAMPLERS.names() if not SAMPLERS.get(name).Config.discrete]
    lines = [
        f"| rep-FD of {count} z, steps | {' | '.join(map(str, arguments.steps))} |",
        "|---" * (len(arguments.steps) + 1) + "|",
    ]
    with tqdm(total=1 + len(arguments.steps) * len(names), desc="sweep", unit="walk") as bar:

        def judge(sampler: SamplerConfig) -> str:
            start = time.perf_counter()
            drawn = _draw(rdm, sampler, cond, count, arguments.seed, device)
            seconds = time.perf_counter() - start
            bar.update()
            return f"{frechet_distance(drawn, held_out):.3f} ({seconds:.1f} s)"

        configured = judge(own)
        for name in names:
            schema = SAMPLERS.get(name).Config
            lines.append(f"| {name} | {' | '.join(judge(schema(steps=steps)) for steps in arguments.steps)} |")
    floor = frechet_distance(real.z[chosen], held_out)
    words = ", ".join(f"{key} {value}" for key, value in own.model_dump().items())
    text = "\n".join([*lines, "", f"as configured ({words}): {configured}; floor {floor:.3f}", ""])
    with checkpoint.atomic(experiment.run / "rdm" / "samplers.md") as temporary:
        temporary.write_text(text)
    print(text)


def _draw(
    rdm: GenerativeModel, sampler: SamplerConfig, cond: Tensor | None, count: int, seed: int, device: torch.device
) -> Tensor:
    """Draw z `(count, D)`."""
    drawn = []
    for start in range(0, count, BATCH):
        indices = range(start, min(start + BATCH, count))
        told = None if cond is None else cond[list(indices)]
        drawn.append(rdm.sample(told, Streams(seed, indices, "rdm", device), sampler=sampler).float().cpu())
    return torch.cat(drawn)


if __name__ == "__main__":
    main()
