"""Draw representations from a trained RDM and show the real images nearest to each, before any generator exists.

python tools/sample_rdm.py configs/digits.yaml [section.key=value ...] --num 1000 --out runs/digits/representations

Where classes were asked for, a table says class by class whether they were got.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rcg import cli, config
from rcg.config import GuidanceConfig
from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.core.registry import NETWORKS
from rcg.core.rng import Streams
from rcg.diffusion.guidance import Probe, Steered
from rcg.diffusion.model import GenerativeModel
from rcg.distributed import launch as parallel
from rcg.encoding.workspace import Real, real_representations
from rcg.metrics.per_class import per_class, table
from rcg.metrics.representation import nearest
from rcg.pipeline import restore
from rcg.training import vectors as conditions
from rcg.visual.grids import save_gallery

SHOWN, NEIGHBORS = 16, 8
FITTED = 20_000
"""Most representations that a probe is fitted to."""


def main() -> None:
    """Parse the command line and sample."""
    parser = cli.parser_for(__doc__ or "", epilog=config.describe)
    cli.add_experiment(parser)
    parser.add_argument("--num", type=cli.positive, default=1000, help="how many representations [1000]")
    parser.add_argument("--seed", type=cli.natural, default=0, help="sample i depends on (seed, i) alone [0]")
    parser.add_argument("--out", type=Path, help="folder of the results [RUN/representations]")
    parser.add_argument("--rdm-steps", type=cli.positive, help="network evaluations [as configured]")
    parser.add_argument(
        "--guidance", type=cli.scale, help="scale of guidance, for an RDM with a condition [as configured]"
    )
    parser.add_argument(
        "--weak", type=Path, help="run with a smaller or shorter trained RDM: --guidance leads away from it"
    )
    parser.add_argument("--class", dest="label", type=cli.natural, help="the class asked for")
    parser.add_argument(
        "--probe", type=cli.scale, default=1.0, help="strength of a linear probe, where the RDM knows no classes [1]"
    )
    parser.add_argument(
        "--vectors", type=Path, help="for an RDM that is told vectors: a safetensors file whose rows are asked for"
    )
    parser.add_argument("--batch-size", type=cli.positive, default=1000, help="how many at a time [1000]")
    cli.main(parser, sample)


@torch.no_grad()
def sample(arguments: argparse.Namespace) -> None:
    """Write representations.safetensors, neighbors.png and, where classes were asked for, classes.md."""
    experiment = config.load(arguments.config, arguments.overrides)
    out = arguments.out or experiment.run / "representations"
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file, not a folder")
    part = checkpoint.load(experiment.run / "rdm" / checkpoint.FILE)
    device = parallel.start().device
    rdm = restore(part, NETWORKS).to(device)
    real = real_representations(experiment, rdm.data)
    asked, probe = _asked(arguments, rdm, real)
    drawn = _draw(arguments, rdm, asked, probe, device)
    facts = {"space": rdm.data.to_json(), "seed": arguments.seed}
    kept = {} if asked is None else {"label" if asked.ndim == 1 else "vector": asked}
    checkpoint.save_tensors(out / "representations.safetensors", {"z": drawn, **kept}, facts)
    near = nearest(drawn[:SHOWN], real.z, NEIGHBORS)
    shown = torch.stack([real.train[int(i)]["image"] for row in near for i in row])
    captions = [f"z {i}" if rank == 0 else "" for i in range(len(near)) for rank in range(near.shape[1])]
    title = f"{experiment.run}: the {NEIGHBORS} training images nearest to each generated representation"
    save_gallery(shown, captions, title, out / "neighbors.png", columns=2 * NEIGHBORS)
    if asked is not None and asked.ndim == 1:
        _judge(drawn, asked, real, probe, out / "classes.md")
    print(f"{out / 'representations.safetensors'}: {tuple(drawn.shape)}; look at {out / 'neighbors.png'}")


def _asked(arguments: argparse.Namespace, rdm: GenerativeModel, real: Real) -> tuple[Tensor | None, Probe | None]:
    """Return the label `(num,)` or vector `(num, D)` that each sample is asked for, and a probe where it must lead."""
    told = None if rdm.cond is None else rdm.cond.shape
    if told:
        return _vectors(arguments, told[0]), None
    if arguments.vectors is not None:
        raise UserError("--vectors was given, but the RDM was not trained with rdm.condition=vector")
    classes = real.train.classes
    if arguments.label is not None and arguments.label >= len(classes):
        known = f"classes are 0 ({classes[0]}) to {len(classes) - 1}" if classes else "the images have no classes"
        raise UserError(f"there is no class {arguments.label}: {known}")
    if rdm.cond is None and arguments.label is None:
        return None, None
    labels = torch.arange(arguments.num) % len(classes)
    if arguments.label is not None:
        labels.fill_(arguments.label)
    return labels, _probe(real) if rdm.cond is None else None


def _vectors(arguments: argparse.Namespace, width: int) -> Tensor:
    if arguments.vectors is None:
        raise UserError(f"the RDM is told vectors of {width} numbers: give some with --vectors FILE")
    vectors = conditions.read(arguments.vectors)
    if vectors.shape[1] != width:
        raise UserError(f"{arguments.vectors} holds vectors of {vectors.shape[1]} numbers; the RDM was told {width}")
    return vectors[torch.arange(arguments.num) % len(vectors)]


def _draw(
    arguments: argparse.Namespace,
    rdm: GenerativeModel,
    asked: Tensor | None,
    probe: Probe | None,
    device: torch.device,
) -> Tensor:
    """Draw z `(num, D)`, batch by batch."""
    weak = None if arguments.weak is None else _weak(arguments.weak, rdm).to(device)
    guidance = None if arguments.guidance is None else GuidanceConfig(scale=arguments.guidance)
    drawn = []
    with tqdm(total=arguments.num, desc="representations", unit="vector") as bar:
        for start in range(0, arguments.num, arguments.batch_size):
            indices = range(start, min(start + arguments.batch_size, arguments.num))
            wanted = None if asked is None else asked[list(indices)].to(device)
            steer: Callable[[Any], Any] | None = None
            if probe is not None and wanted is not None:
                steer = partial(Steered, probe=probe, labels=wanted, scale=arguments.probe)
            streams = Streams(arguments.seed, indices, "rdm", device)
            cond = None if rdm.cond is None else wanted
            found = rdm.sample(cond, streams, guidance, arguments.rdm_steps, weak=weak, steer=steer)
            drawn.append(found.float().cpu())
            bar.update(len(indices))
    return torch.cat(drawn)


def _judge(drawn: Tensor, asked: Tensor, real: Real, probe: Probe | None, path: Path) -> None:
    """Write and print how well each class was met."""
    assert real.train.labels is not None
    assert real.held_out.labels is not None
    judge = probe or _probe(real)
    rows = per_class(
        drawn,
        asked,
        real.z,
        real.train.labels,
        real.held_out_z,
        real.held_out.labels,
        lambda z: judge.log_probability(z).argmax(1),
        real.train.classes,
    )
    found = table(rows)
    with checkpoint.atomic(path) as temporary:
        temporary.write_text(found)
    print(found)


def _probe(real: Real) -> Probe:
    assert real.train.labels is not None  # a class can only be asked for by its number among the data set's
    return Probe.fit(real.z[:FITTED], real.train.labels[:FITTED])


def _weak(run: Path, rdm: GenerativeModel) -> Any:
    """Load the network to guide away from."""
    model = restore(checkpoint.load(run / "rdm" / checkpoint.FILE), NETWORKS)
    if (model.data, model.cond) != (rdm.data, rdm.cond):
        raise UserError(f"--weak {run} generates representations of {model.data.id}, not of {rdm.data.id}")
    return model.network


if __name__ == "__main__":
    main()
