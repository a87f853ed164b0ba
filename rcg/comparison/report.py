"""The report of a comparison: compare.md, compare.json, compare.png, curves.png and one self-contained compare.html."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rcg.comparison.arms import ARMS
from rcg.comparison.compare import Outcome, Result, TrainingFacts
from rcg.comparison.study import Study
from rcg.core.console import say
from rcg.encoding.run_folder import SHARED_STAGES
from rcg.evaluation.scores import Score
from rcg.metrics.bootstrap import MeanStd
from rcg.visual.curves import draw_together, latest
from rcg.visual.documents import Document, render, words
from rcg.visual.grids import save_rows

PAPER = "RCG's paper: 0.93 of the gap in FID (Table 9a: MAGE-B, ImageNet at 256 px)."
ROW_SAMPLES = 16
"""Samples of each arm in the picture; half as many where they are large."""
LARGE_SIDE = 64
"""Side in pixels above which images are large."""
NAME, SAMPLES, CURVES = "compare", "compare.png", "curves.png"
HEAD = ("arm", "condition in sampling", "training", "evaluations", "seconds")


def gap_closed(none: Score, arm: Score, oracle: Score) -> MeanStd | None:
    """Return (none - arm) / (none - oracle), None where the oracle is no better than no condition.

    The std takes those of the three scores as independent and small: errors propagate to first order.
    """
    gap = none.value - oracle.value
    if gap <= 0:
        return None
    share = (none.value - arm.value) / gap
    if arm in (none, oracle):
        return MeanStd(share, 0.0)
    # The derivatives by the three scores are 1 - share, -1 and share, over the gap.
    errors = ((1 - share) * _std(none), _std(arm), share * _std(oracle))
    return MeanStd(share, math.hypot(*errors) / gap)


def _std(score: Score) -> float:
    return score.std or 0.0


def write(study: Study, result: Result) -> None:
    """Write the report of a comparison into its folder, and print it."""
    out, logs = study.out, study.work.run.logs()
    networks = dict.fromkeys(outcome.folder for outcome in result.outcomes.values() if not outcome.left_out)
    draw_together({name: logs[name] for name in networks if name in logs}, out / CURVES)
    _draw_samples(study, result)
    report = Document(
        title=f"{study.work.run.path}: conditions of {study.generator.name} compared",
        head=_head(result),
        rows=[*(_row(key, result) for key in result.outcomes), *_real_row(result)],
        lines=list(headlines(result)),
        warnings=result.warnings,
        pictures={SAMPLES: "first samples of each arm", CURVES: "training"},
        drawn=[CURVES],
        settings=_methods(study, result, logs),
    )
    configuration = study.work.experiment.to_yaml()
    text = report.write(out, NAME, _values(study, result) | {"report": report._asdict()})
    page = {"title": report.title, "report": report, "folder": out, "experiment": configuration}
    render("comparison.html", out / f"{NAME}.html", **page)
    say(text.read_text(encoding="utf-8"))
    say(f"look at {out / f'{NAME}.html'}, which needs no other file")


def headlines(result: Result) -> Iterator[str]:
    """Say for each distance which share of the gap generated representations close."""
    for space, distance in result.distances:
        none, generated, oracle = (result.score(key, space, distance) for key in ("none", "generated", "oracle"))
        if none is None or generated is None or oracle is None:
            yield f"The share of the gap closed needs the arms none, generated and oracle ({distance}, {space})."
            continue
        closed = gap_closed(none, generated, oracle)
        numbers = f"none {none.text}, generated {generated.text}, oracle{_source(result)} {oracle.text}"
        if closed is None:
            yield f"In {distance} ({space}) real representations are no better than none: there is no gap ({numbers})."
        else:
            yield (
                f"In {distance} ({space}) generated representations close {_share(closed)} of the gap, "
                f"(none - generated) / (none - oracle): {numbers}."
            )
    yield PAPER


def _head(result: Result) -> list[str]:
    distances = [distance for _, distance in result.distances]
    names = [name if distances.count(name) == 1 else f"{name} ({space})" for space, name in result.distances]
    return [*HEAD, *(cell for name in names for cell in (name, f"gap closed in {name}")), "precision", "recall"]


def _row(key: str, result: Result) -> list[str]:
    arm, outcome = ARMS[key], result.outcomes[key]
    training, cost = outcome.training, outcome.cost
    if training is None or cost is None:
        return [arm.name, f"not available: {outcome.left_out}", *[""] * (len(_head(result)) - 2)]
    evaluations = f"{cost.generator:.4g}"
    if cost.rdm:
        evaluations += f" + {cost.rdm:.4g} of the RDM"
    cells = [
        arm.name,
        _condition_text(key, training),
        f"{training.steps} steps in {training.seconds:.0f} s",
        evaluations,
        f"{cost.seconds:.3g}",
    ]
    for space, distance in result.distances:
        closed = _gap(key, result, space, distance)
        cells += [_number(result.score(key, space, distance)), _share(closed)]
    main = result.distances[0][0]
    return cells + [_number(result.score(key, main, name)) for name in ("precision", "recall")]


def _real_row(result: Result) -> Iterator[list[str]]:
    """Yield a row with the distances of validation images, where they are known."""
    if result.reference_fds:
        by_space = {score.space: score for score in result.reference_fds}
        distances = [cell for space, _ in result.distances for cell in (_number(by_space.get(space)), "")]
        yield ["real images", "as many validation images", "", "", "", *distances, "", ""]


def _condition_text(key: str, training: TrainingFacts) -> str:
    text = ARMS[key].condition_text
    if training.clusters:
        return f"{text}, {training.clusters} of them"
    if key == "oracle" and training.representations is not None:
        return f"{text} ({training.representations['of']})"
    return text


def _source(result: Result) -> str:
    """Return what the oracle's representations are of, in brackets."""
    training = result.outcomes["oracle"].training
    return "" if training is None or training.representations is None else f" ({training.representations['of']})"


def _number(score: Score | None) -> str:
    """Write a score with its std, nothing where there is none."""
    return "" if score is None else score.text


def _gap(key: str, result: Result, space: str, distance: str) -> MeanStd | None:
    none, arm, oracle = (result.score(name, space, distance) for name in ("none", key, "oracle"))
    return gap_closed(none, arm, oracle) if none and arm and oracle else None


def _share(share: MeanStd | None) -> str:
    """Write a share of the gap with its std, nothing where there is none."""
    if share is None:
        return ""
    return f"{share.mean:.2f} ± {share.std:.2g}" if share.std else f"{share.mean:.2f}"


def _draw_samples(study: Study, result: Result) -> None:
    """Draw the first samples of each arm, a row for each; sample i begins at the same noise in all of them."""
    rows = {}
    for key, outcome in result.outcomes.items():
        if outcome.cost is not None and outcome.training is not None:
            images = outcome.cost.images
            count = ROW_SAMPLES if images.shape[-1] <= LARGE_SIDE else ROW_SAMPLES // 2
            condition = _condition_text(key, outcome.training)
            name = f"{ARMS[key].name}; condition: {condition}; {outcome.cost.generator:.4g} evaluations"
            rows[name] = images[:count] / 255
    title = f"{study.work.run.path} · seed {study.plan.options.seed} · the first samples of each arm"
    save_rows(rows, title, study.out / SAMPLES)


def _guidance_text(guidance: dict[str, Any] | None) -> str:
    if guidance is None:
        return "none"
    return words(guidance) if guidance["against"] else f"{words(guidance)}; none where there is no condition"


def _methods(study: Study, result: Result, logs: Mapping[str, list[dict[str, float]]]) -> dict[str, str]:
    """Return how the comparison was made, by subject."""
    trainings = [outcome.training for outcome in result.outcomes.values() if outcome.training is not None]
    costs = [outcome.cost for outcome in result.outcomes.values() if outcome.cost is not None]
    report = next(outcome.report for outcome in result.outcomes.values() if outcome.report is not None)
    plan, options, first = study.plan, study.plan.options, trainings[0]
    guidance = next((training.guidance for training in trainings if training.guidance), None)
    neighbors = {name: latest(lines) for name, lines in logs.items() if name in SHARED_STAGES}
    others = [f"{name} {log['step']:.0f} steps in {log['seconds']:.0f} s" for name, log in neighbors.items()]
    methods = {
        "samples": f"{plan.count} of each arm, seed {options.seed}; classes and clusters {options.labels}",
        "sampler": words(first.sampler),
        "guidance": _guidance_text(guidance),
        "reference": words(report.reference),
        "precision, recall": f"in the features of {result.distances[0][0]}",
        "extractors": words(report.extractors),
        "training": f"the same section generator.train and the same images for all: {first.steps} steps of "
        f"{first.batch_size}. Self-conditioning evaluates its network once more, without gradients, for half of each "
        f"batch; seconds depend on the machine and its load during each training",
        "other trainings": "; ".join(others),
        "evaluations": f"of the generator for one sample, counted while {len(costs[0].images)} were generated; a "
        f"guided one counts twice. Two passes: a whole one, and {options.sdedit_strength:g} of another (the strength "
        f"of SDEdit), from samples taken back to that share of the noise, or of masks; encoded: two whole ones, and "
        f"one of the encoder",
        "seconds": f"for one sample, in batches of {plan.batch_size}, on {result.device}; mixed precision: "
        f"{plan.precision}",
        "stds": f"over {study.metrics.resamples} resamples of the samples (recall: of reference images), of gaps to "
        f"first order from those of the three distances; they do not include the variation between trainings",
    }
    return {subject: text for subject, text in methods.items() if text}


def _values(study: Study, result: Result) -> dict[str, Any]:
    """Return everything as JSON-serializable values."""
    plan = study.plan
    return {
        "run": str(study.work.run.path),
        "sampling": {"number": plan.count, "precision": plan.precision, **asdict(plan.options)},
        "device": result.device,
        "arms": {key: _arm_values(key, outcome, result) for key, outcome in result.outcomes.items()},
        "real": [score._asdict() for score in result.reference_fds],
        "warnings": result.warnings,
    }


def _arm_values(key: str, outcome: Outcome, result: Result) -> dict[str, Any]:
    gaps = {space: _gap(key, result, space, distance) for space, distance in result.distances}
    scores = outcome.report.scores if outcome.report else []
    return {
        "name": ARMS[key].name,
        "condition": ARMS[key].condition_text,
        "network": outcome.folder,
        "missing": outcome.left_out,
        "training": outcome.training and outcome.training._asdict(),
        "cost": outcome.cost and outcome.cost.numbers(),
        "scores": [score._asdict() for score in scores],
        "gap_closed": {space: share._asdict() for space, share in gaps.items() if share},
    }
