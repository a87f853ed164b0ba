"""What a comparison found: compare.md, compare.json, compare.png, curves.png and one self-contained compare.html."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

from rcg.comparison.arms import ARMS
from rcg.comparison.study import Outcome, Result, Study
from rcg.core.checkpoint import atomic
from rcg.evaluation.report import words
from rcg.evaluation.run_page import picture, table, write_document
from rcg.evaluation.scores import Figure
from rcg.metrics.bootstrap import Spread
from rcg.visual.curves import draw_together, latest, read_logs
from rcg.visual.grids import save_rows

NAME, CURVES = "compare", "curves.png"
PAPER = "RCG's paper: 0.93 of the gap in FID (Table 9a: MAGE-B, ImageNet at 256 px)."
SHOWN, LARGE = 16, 64
"""Samples of each arm in the picture; half as many where they have more pixels a side than that."""
HEAD = ("arm", "told when it samples", "training", "evaluations", "seconds")


def gap_closed(none: Figure, arm: Figure, oracle: Figure) -> Spread | None:
    """Return (none - arm) / (none - oracle), None where the oracle is no better than nothing.

    The deviation takes those of the three figures as independent and small: errors propagate to first order.
    """
    whole, closed = none.value - oracle.value, none.value - arm.value
    if whole <= 0:
        return None
    share = closed / whole
    if arm in (none, oracle):
        return Spread(share, 0.0)
    # The derivatives by the three figures are 1 - share, -1 and share, over the whole gap.
    errors = (1 - share) * _deviation(none), _deviation(arm), share * _deviation(oracle)
    return Spread(share, math.hypot(*errors) / whole)


def _deviation(figure: Figure) -> float:
    return figure.spread.deviation if figure.spread else 0.0


class Page(NamedTuple):
    """What people are to read, before it is Markdown or HTML."""

    title: str
    headlines: list[str]
    head: list[str]
    rows: list[list[str]]
    facts: dict[str, str]
    """How it was done, by what it is about."""
    warnings: list[str]


def write(study: Study, result: Result) -> None:
    """Write the report of a comparison into its folder."""
    out, logs = study.out, read_logs(study.experiment.run)
    networks = dict.fromkeys(found.folder for found in result.outcomes.values() if not found.missing)
    draw_together({name: logs[name] for name in networks if name in logs}, out / CURVES)
    _draw_samples(study, result)
    page = Page(
        f"{study.experiment.run}: what {study.generator.name} is told, and what it is worth",
        list(headlines(result)),
        _head(result),
        [*(_row(key, result) for key in result.outcomes), *_real(result)],
        dict(_facts(study, result, logs)),
        result.warnings,
    )
    values = json.dumps(_values(study, result, page.facts), indent=1)
    for kind, text in ((".md", _markdown(page)), (".json", values)):
        with atomic(out / f"{NAME}{kind}") as temporary:
            temporary.write_text(text + "\n")
    write_document(page.title, _html(page, study), out / f"{NAME}.html")


def _markdown(page: Page) -> str:
    lines = [f"# {page.title}", "", *(f"{line}\n" for line in page.headlines)]
    lines += [f"| {' | '.join(cells)} |" for cells in (page.head, ["---"] * len(page.head), *page.rows)]
    lines += ["", f"![first samples of each arm]({NAME}.png)\n", f"![curves of training]({CURVES})\n"]
    lines += [f"- {name}: {text}" for name, text in page.facts.items()]
    return "\n".join([*lines, "", *(f"**Mind:** {warning}.\n" for warning in page.warnings)])


def _html(page: Page, study: Study) -> Iterator[str]:
    yield from (f"<p>{escape(line)}</p>" for line in page.headlines)
    yield table(page.head, page.rows)
    yield f"<h2>First samples of each arm</h2>{picture(study.out / f'{NAME}.png')}"
    yield f"<h2>Training</h2>{picture(study.out / CURVES, 'curves')}"
    yield f"<h2>How it was done</h2>{table(('', ''), page.facts.items())}"
    yield from (f"<p class=mind>Mind: {escape(warning)}.</p>" for warning in page.warnings)
    yield f"<details><summary>Configuration</summary><pre>{escape(study.experiment.to_yaml())}</pre></details>"


def headlines(result: Result) -> Iterator[str]:
    """Say for each distance which share of the gap generated representations close."""
    for view, distance in result.views:
        none, generated, oracle = (_figure(key, result, view, distance) for key in ("none", "generated", "oracle"))
        if none is None or generated is None or oracle is None:
            yield f"The share of the gap that is closed needs the arms none, generated and oracle ({distance}, {view})."
            continue
        found = gap_closed(none, generated, oracle)
        numbers = f"none {_number(none)}, generated {_number(generated)}, oracle {_number(oracle)}"
        if found is None:
            yield f"In {distance} ({view}) real representations are no better than none: there is no gap ({numbers})."
        else:
            yield (
                f"In {distance} ({view}) generated representations close {_spread(found)} of the gap, "
                f"(none - generated) / (none - oracle): {numbers}."
            )
    yield PAPER


def _figure(key: str, result: Result, view: str, name: str) -> Figure | None:
    found = result.outcomes.get(key)
    figures = found.report.figures if found and found.report else []
    return next((figure for figure in figures if (figure.space, figure.name) == (view, name)), None)


def _head(result: Result) -> list[str]:
    every = [distance for _, distance in result.views]
    names = [name if every.count(name) == 1 else f"{name} ({view})" for view, name in result.views]
    return [*HEAD, *(cell for name in names for cell in (name, f"gap closed in {name}")), "precision", "recall"]


def _row(key: str, result: Result) -> list[str]:
    arm, found = ARMS[key], result.outcomes[key]
    if found.missing or found.cost is None:
        return [arm.name, f"not available: {found.missing}", *[""] * (len(_head(result)) - 2)]
    training = f"{found.facts['steps']} steps in {found.facts['seconds']:.0f} s"
    evaluations = f"{found.cost.generator:.4g}" + (f" + {found.cost.rdm:.4g} of the RDM" if found.cost.rdm else "")
    cells = [arm.name, _told(arm.told, found), training, evaluations, f"{found.cost.seconds:.3g}"]
    for view, distance in result.views:
        cells += [_number(_figure(key, result, view, distance)), _closed(key, result, view, distance)]
    main = result.views[0][0]
    return cells + [_number(_figure(key, result, main, name)) for name in ("precision", "recall")]


def _real(result: Result) -> Iterator[list[str]]:
    """Yield a row with the distances of held-out images, where they are known."""
    if result.floors:
        by_view = {floor.space: floor for floor in result.floors}
        distances = [cell for view, _ in result.views for cell in (_number(by_view.get(view)), "")]
        yield ["real images", f"{result.held_out} held-out ones", "", "", "", *distances, "", ""]


def _told(words: str, found: Outcome) -> str:
    if found.facts["clusters"]:
        return f"{words}, {found.facts['clusters']} of them"
    told = found.facts["told"]
    return f"{words} ({told['representations of']})" if told and "number" in told else words


def _number(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return f"{figure.value:.4g}" + (f" ± {figure.spread.deviation:.2g}" if figure.spread else "")


def _gap(key: str, result: Result, view: str, distance: str) -> Spread | None:
    none, arm, oracle = (_figure(name, result, view, distance) for name in ("none", key, "oracle"))
    return gap_closed(none, arm, oracle) if none and arm and oracle else None


def _closed(key: str, result: Result, view: str, distance: str) -> str:
    found = _gap(key, result, view, distance)
    return "" if found is None else _spread(found)


def _spread(share: Spread) -> str:
    return f"{share.mean:.2f}" + (f" ± {share.deviation:.2g}" if share.deviation else "")


def _draw_samples(study: Study, result: Result) -> None:
    """Draw the first samples of each arm, a row for each; sample i begins at the same noise in all of them."""
    rows = {}
    for key, found in result.outcomes.items():
        if found.cost is not None:
            shown = SHOWN if found.cost.images.shape[-1] <= LARGE else SHOWN // 2
            name = f"{ARMS[key].name}: told {_told(ARMS[key].told, found)}; {found.cost.generator:.4g} evaluations"
            rows[name] = found.cost.images[:shown] / 255
    title = f"{study.experiment.run} · seed {study.drawing.seed} · the first samples of each arm"
    save_rows(rows, title, study.out / f"{NAME}.png")


def _facts(study: Study, result: Result, logs: Any) -> Iterator[tuple[str, str]]:
    """Yield how it was done, by what it is about."""
    done = [found for found in result.outcomes.values() if found.cost is not None]
    drawing, first = study.drawing, done[0]
    guidance = next((found.facts["guidance"] for found in done if found.facts["guidance"]), None)
    reference = next(found.report.facts["reference"] for found in done if found.report)
    yield "samples", f"{drawing.count} of each arm, seed {drawing.seed}; classes and clusters {drawing.labels}"
    yield "sampler", words(first.facts["sampler"])
    yield "guidance", "none" if guidance is None else f"{words(guidance)}; none where there is no condition"
    yield "reference", words(reference)
    yield "precision, recall", f"in the features of {result.views[0][0]}"
    yield "extractors", words(next(found.report.facts["extractors"] for found in done if found.report))
    yield (
        "training",
        f"the same section generator.train and the same images for all: {first.facts['steps']} steps of "
        f"{first.facts['batch_size']}. Self-conditioning evaluates its network once more, without gradients, for half "
        f"of each batch; seconds are of the machine and the hour of each training",
    )
    others = [(name, latest(lines)) for name, lines in logs.items() if name in ("encoder", "autoencoder", "rdm")]
    if others:
        yield "besides", "; ".join(f"{name} {log['step']:.0f} steps in {log['seconds']:.0f} s" for name, log in others)
    yield (
        "evaluations",
        f"of the generator for one sample, counted as {len(first.cost.images) if first.cost else 0} were drawn; a "
        f"guided one counts twice. Two passes: a whole one, and {drawing.t0:g} of another (t0), from samples taken "
        f"back to that share of the noise, or of masks; encoded: two whole ones, and one of the encoder",
    )
    precision = f"mixed precision: {drawing.precision}"
    yield "seconds", f"for one sample, in batches of {drawing.batch_size}, on {result.device}; {precision}"
    yield (
        "deviations",
        f"over {study.resamples} resamples of the samples, of gaps to first order from those of the three distances; "
        f"the luck of training is not in them",
    )


def _values(study: Study, result: Result, facts: dict[str, str]) -> dict[str, Any]:
    """Return everything as JSON-serializable values."""
    arms = {}
    for key, found in result.outcomes.items():
        closed = {view: _gap(key, result, view, distance) for view, distance in result.views}
        cost = None if found.cost is None else {k: v for k, v in found.cost._asdict().items() if k != "images"}
        arms[key] = {
            "name": ARMS[key].name,
            "told": ARMS[key].told,
            "network": found.folder,
            "missing": found.missing,
            "training": dict(found.facts),
            "cost": cost,
            "figures": _listed(found.report.figures if found.report else []),
            "gap_closed": {view: spread._asdict() for view, spread in closed.items() if spread},
        }
    drawing = {"number": study.drawing.count, "seed": study.drawing.seed, "t0": study.drawing.t0, **study.drawing.how}
    drawing["precision"] = study.drawing.precision
    about = {"run": str(study.experiment.run), "drawing": drawing, "device": result.device, "facts": facts}
    return {**about, "arms": arms, "real": _listed(result.floors), "warnings": result.warnings}


def _listed(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    return [figure._asdict() | {"spread": figure.spread and figure.spread._asdict()} for figure in figures]
