"""Say in a short table how good the parts of a run are and how long they took; draw their curves.

python tools/summary.py runs/digits
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rcg import cli
from rcg.visual.curves import draw_curves, latest, quality, read_logs


def main() -> None:
    """Parse the command line and print the table."""
    parser = cli.parser_for(__doc__ or "")
    parser.add_argument("run", type=Path, help="folder of a run")
    cli.main(parser, summarize)


def summarize(arguments: argparse.Namespace) -> None:
    """Print what the logs of all stages and the last sampling say."""
    lines = read_logs(arguments.run)
    draw_curves(lines, arguments.run / "curves.png")
    logs = {name: latest(log) for name, log in lines.items()}
    rows = [(name, f"{log['step']} steps in {log['seconds']:.0f} s", quality(log)) for name, log in logs.items()]
    for path in sorted(arguments.run.glob("*/samples.json")):
        facts = json.loads(path.read_text())
        rows.append((path.parent.name, f"{facts['num']} images", f"{facts['images_per_second']:.1f} images/s"))
    for path in sorted(arguments.run.glob("evaluation/*/report.json")):
        report = json.loads(path.read_text())
        words = ", ".join(f"{figure['name']} {figure['value']:.4g}" for figure in report["figures"])
        rows.append((path.parent.name, f"{report['samples']['number']} images", words))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, cost, words in rows:
        print(f"{name:{widths[0]}}  {cost:{widths[1]}}  {words}")
    for path in sorted(arguments.run.glob("*/gallery.png")):
        print(f"\nlook at {path}")
    print(f"and at {arguments.run / 'curves.png'}")


if __name__ == "__main__":
    main()
