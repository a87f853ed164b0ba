"""Say in a short table how good the parts of a run are and how long they took; draw their curves.

python tools/summary.py runs/digits
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rcg import cli
from rcg.curves import draw_curves
from rcg.errors import UserError


def main() -> None:
    """Parse the command line and print the table."""
    parser = cli.parser_for(__doc__ or "")
    parser.add_argument("run", type=Path, help="folder of a run")
    cli.main(parser, summarise)


def summarise(arguments: argparse.Namespace) -> None:
    """Print what the logs of all stages and the last sampling say."""
    lines = {path.parent.name: _read(path) for path in sorted(arguments.run.glob("*/log.jsonl"))}
    if not lines:
        raise UserError(f"{arguments.run} holds no trained stage: run tools/train_encoder.py first")
    order = sorted(lines, key=lambda name: {"encoder": 0, "tokenizer": 1, "rdm": 2}.get(name, 3))
    logs = {name: _latest(lines[name]) for name in order}
    draw_curves({name: lines[name] for name in order}, arguments.run / "curves.png")
    rows = [
        (name, f"{logs[name]['step']} steps in {logs[name]['seconds']:.0f} s", _quality(logs[name])) for name in order
    ]
    for path in sorted(arguments.run.glob("*/samples.json")):
        facts = json.loads(path.read_text())
        rows.append((path.parent.name, f"{facts['num']} images", f"{facts['images_per_second']:.1f} images/s"))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, cost, quality in rows:
        print(f"{name:{widths[0]}}  {cost:{widths[1]}}  {quality}")
    for path in sorted(arguments.run.glob("*/gallery.png")):
        print(f"\nlook at {path}")
    print(f"and at {arguments.run / 'curves.png'}")


def _quality(log: dict[str, float]) -> str:
    """Turn the last metrics of a stage into words."""
    words = []
    if "knn_accuracy" in log:
        words.append(f"10-NN accuracy {log['knn_accuracy']:.1%}")
    elif "effective_rank" in log:
        words.append(f"effective rank {log['effective_rank']:.1f}, uniformity {log['uniformity']:.2f}")
    if "psnr" in log:
        words.append(f"PSNR {log['psnr']:.2f} dB, SSIM {log['ssim']:.3f}")
    if "code_usage" in log:
        words.append(f"code usage {log['code_usage']:.1%}, perplexity {log['perplexity']:.0f}")
    words += [f"{key} {log[key]:.3g}" for key in log if key.startswith(("rfid_", "encoder_fd"))]
    if "rep_fd" in log:
        words.append(f"rep-FD {log['rep_fd']:.3g} (floor {log['rep_fd_floor']:.3g})")
    if "rep_precision" in log:
        words.append(f"precision {log['rep_precision']:.2f}, recall {log['rep_recall']:.2f}")
        words.append(f"novelty {log['rep_novelty']:.2f}")
    if "rep_agreement" in log:
        words.append(f"class agreement {log['rep_agreement']:.1%} (real {log['rep_agreement_real']:.1%})")
    words += [f"{key.replace('_', ' ')} {log[key]:.4g}" for key in log if key.startswith("validation_")]
    return ", ".join(words)


def _read(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _latest(lines: list[dict[str, float]]) -> dict[str, float]:
    """Merge the lines of a log, later ones winning."""
    merged: dict[str, float] = {}
    for line in lines:
        merged |= line
    return merged


if __name__ == "__main__":
    main()
