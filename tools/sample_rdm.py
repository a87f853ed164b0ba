"""Draw representations from a trained RDM and show the real images nearest to each, before any generator exists.

python tools/sample_rdm.py configs/digits.yaml [section.key=value ...] --num 1000 --out runs/digits/representations
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rcg import checkpoint, cli, config, parallel, stages
from rcg.config import GuidanceConfig
from rcg.errors import UserError
from rcg.gallery import save_gallery
from rcg.metrics.representation import nearest
from rcg.model import GenerativeModel
from rcg.pipeline import restore
from rcg.randomness import Streams
from rcg.registry import NETWORKS
from rcg.steering import Probe, Steered

SHOWN, NEIGHBOURS = 16, 8
FITTED = 20_000
"""Most representations that a probe is fitted to."""


def main() -> None:
    """Parse the command line and sample."""
    parser = cli.parser_for(__doc__ or "", epilog=config.describe)
    cli.add_experiment(parser)
    parser.add_argument("--num", type=cli.positive, default=1000, help="how many representations [1000]")
    parser.add_argument("--seed", type=cli.natural, default=0, help="sample i depends on (seed, i) alone [0]")
    parser.add_argument("--out", type=Path, help="folder of the results [RUN/representations]")
    parser.add_argument("--rdm-steps", type=cli.positive, help="network evaluations")
    parser.add_argument("--guidance", type=cli.scale, help="scale of guidance, for an RDM trained on classes")
    parser.add_argument(
        "--weak", type=Path, help="run with a smaller or shorter trained RDM: --guidance leads away from it"
    )
    parser.add_argument("--class", dest="label", type=cli.natural, help="the class asked for")
    parser.add_argument(
        "--probe", type=cli.scale, default=1.0, help="strength of a linear probe, where the RDM knows no classes [1]"
    )
    parser.add_argument("--batch-size", type=cli.positive, default=1000, help="how many at a time [1000]")
    cli.main(parser, sample)


@torch.no_grad()
def sample(arguments: argparse.Namespace) -> None:
    """Write representations.safetensors and neighbours.png."""
    experiment = config.load(arguments.config, arguments.overrides)
    out = arguments.out or experiment.run / "representations"
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file, not a folder")
    part = checkpoint.load(experiment.run / "rdm" / checkpoint.FILE)
    device = parallel.start().device
    rdm = restore(part, NETWORKS).to(device)
    images, z = stages.training_representations(experiment, rdm.data)
    weak = None if arguments.weak is None else _weak(arguments.weak, rdm).to(device)
    classes = images.classes
    if arguments.label is not None and arguments.label >= len(classes):
        known = f"classes are 0 ({classes[0]}) to {len(classes) - 1}" if classes else "the images have no classes"
        raise UserError(f"there is no class {arguments.label}: {known}")
    probe = None
    if arguments.label is not None and rdm.cond is None and images.labels is not None:
        probe = Probe.fit(z[:FITTED], images.labels[:FITTED])
    guidance = None if arguments.guidance is None else GuidanceConfig(scale=arguments.guidance)
    drawn, labels = [], torch.arange(arguments.num) % max(1, len(classes))
    if arguments.label is not None:
        labels.fill_(arguments.label)
    with tqdm(total=arguments.num, desc="representations", unit="vector") as bar:
        for start in range(0, arguments.num, arguments.batch_size):
            indices = range(start, min(start + arguments.batch_size, arguments.num))
            asked = labels[list(indices)].to(device)
            steer = None
            if probe is not None:
                steer = partial(Steered, probe=probe, labels=asked, scale=arguments.probe)
            cond = None if rdm.cond is None else asked
            streams = Streams(arguments.seed, indices, "rdm", device)
            z_drawn = rdm.sample(cond, streams, guidance, arguments.rdm_steps, weak=weak, steer=steer)
            drawn.append(z_drawn.float().cpu())
            bar.update(len(indices))
    found = torch.cat(drawn)
    facts = {"space": rdm.data.to_json(), "seed": arguments.seed}
    conditions = {} if rdm.cond is None and probe is None else {"label": labels}
    checkpoint.save_tensors(out / "representations.safetensors", {"z": found, **conditions}, facts)
    near = nearest(found[:SHOWN], z, NEIGHBOURS)
    shown = torch.stack([images[int(i)]["image"] for row in near for i in row])
    captions = [f"z {i}" if rank == 0 else "" for i in range(len(near)) for rank in range(near.shape[1])]
    title = f"{experiment.run}: the {NEIGHBOURS} training images nearest to each generated representation"
    save_gallery(shown, captions, title, out / "neighbours.png", columns=2 * NEIGHBOURS)
    print(f"{out / 'representations.safetensors'}: {tuple(found.shape)}; look at {out / 'neighbours.png'}")


def _weak(run: Path, rdm: GenerativeModel) -> Any:
    """Load the network to guide away from."""
    model = restore(checkpoint.load(run / "rdm" / checkpoint.FILE), NETWORKS)
    if (model.data, model.cond) != (rdm.data, rdm.cond):
        raise UserError(f"--weak {run} generates representations of {model.data.id}, not of {rdm.data.id}")
    return model.network


if __name__ == "__main__":
    main()
