"""One self-contained HTML page about a run: samples, figures, curves, neighbors, cost, configuration."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from rcg.core import checkpoint
from rcg.evaluation.report import spread_words, words
from rcg.visual.curves import draw_curves, latest, quality, read_logs

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc } table { border-collapse: collapse }
td, th { padding: .2rem 1rem .2rem 0; text-align: left; border-bottom: 1px solid #eee; vertical-align: top }
img { max-width: 100%; image-rendering: pixelated } .curves { image-rendering: auto }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto } .mind { color: #a40 } .small { color: #777 }
"""


def write_page(run: Path, path: Path) -> None:
    """Write the page about `run`, with whatever its training, sampling and evaluation left there, into `path`.

    Raises:
        UserError: nothing was trained in `run`.
    """
    logs = read_logs(run)
    draw_curves(logs, run / "curves.png")
    parts = [
        *_samples(run, list(logs)),
        *_figures(run),
        *_sweeps(run),
        "<h2>Training</h2>",
        table(
            ("stage", "cost", "megabytes", "quality"),
            ((name, _cost(latest(log)), _megabytes(run / name), quality(latest(log))) for name, log in logs.items()),
        ),
        picture(run / "curves.png", "curves"),
        *_configurations(run, list(logs)),
    ]
    write_document(f"rcg: {run}", parts, path)


def write_document(title: str, parts: Iterable[str], path: Path) -> None:
    """Write pieces of HTML, under a title, as one page."""
    head = f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>\n"
    with checkpoint.atomic(path) as temporary:
        temporary.write_text(f"{head}<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</html>\n")


def _samples(run: Path, stages: Sequence[str]) -> Iterator[str]:
    """Show the galleries of tools/sample.py, or else the last grid that training painted."""
    found = sorted(run.glob("*/gallery.png"))
    if not found:
        grids = sorted((run / stages[-1] / "samples").glob("*.png"))
        found = grids[-1:]
    if found:
        yield "<h2>Samples</h2>"
    for gallery in found:
        yield picture(gallery)
        facts = gallery.with_name("samples.json")
        if facts.is_file():
            yield f"<p class=small>{escape(words(json.loads(facts.read_text())))}</p>"


def _figures(run: Path) -> Iterator[str]:
    """Show each report of tools/evaluate.py with its neighbors."""
    for path in sorted(run.glob("evaluation/*/report.json")):
        report = json.loads(path.read_text())
        yield f"<h2>Evaluation {escape(path.parent.name)}</h2>"
        rows = (
            (f["name"], f"{f['value']:.5g}", spread_words(f["spread"]), f["space"], f["good"])
            for f in report["figures"]
        )
        yield table(("figure", "value", "mean ± deviation", "features", "good is"), rows)
        yield from (f"<p class=mind>Mind: {escape(warning)}.</p>" for warning in report["warnings"])
        facts = ("samples", "reference", "extractors", "cost")
        yield table(("", ""), ((name, words(report[name])) for name in facts))
        yield from (picture(found) for found in sorted(path.parent.glob("neighbors-*.png")))


def _sweeps(run: Path) -> Iterator[str]:
    """Show what tools/evaluate.py found at several scales of guidance."""
    for path in sorted(run.glob("evaluation/*/guidance.json")):
        found = json.loads(path.read_text())
        yield f"<h2>Guidance</h2><p class=small>{escape(found['title'])}</p>"
        yield from (f"<p>{escape(line)}.</p>" for line in found["best"])
        yield table(found["head"], found["rows"])
        yield from (
            picture(path.with_name(name), kind) for name, kind in (("guidance.png", "curves"), ("samples.png", ""))
        )


def _configurations(run: Path, stages: Sequence[str]) -> Iterator[str]:
    yield "<h2>Configuration</h2>"
    for name in stages:
        path = run / name / "config.yaml"
        if path.is_file():
            yield f"<details><summary>{escape(name)}</summary><pre>{escape(path.read_text())}</pre></details>"


def picture(path: Path, kind: str = "") -> str:
    """Return a picture that needs no other file; of the kind `curves` it is scaled smoothly."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img class="{kind}" alt="{escape(path.name)}" src="data:image/png;base64,{data}"></p>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [_row("th", head)] if any(head) else []
    return "<table>\n" + "\n".join(lines + [_row("td", row) for row in rows]) + "\n</table>"


def _row(cell: str, texts: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{cell}>{escape(text)}</{cell}>" for text in texts) + "</tr>"


def _cost(log: dict[str, float]) -> str:
    return f"{log['step']:.0f} steps in {log['seconds']:.0f} s"


def _megabytes(folder: Path) -> str:
    path = folder / checkpoint.FILE
    return f"{path.stat().st_size / 1e6:.1f}" if path.is_file() else ""
