"""One evaluation from its subject to its report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from rcg.core.errors import UserError
from rcg.evaluation import scores as figures
from rcg.evaluation.features import View, condition_view, extract, pixel_view, saving_view
from rcg.evaluation.report import Report, draw_neighbors
from rcg.evaluation.samples import Generated, Source, Stored, arrays, key, of_batch, of_folder
from rcg.evaluation.scores import Figure, Reference, Resampling
from rcg.metrics.frechet import Gaussian
from rcg.metrics.inception import SPATIAL


@dataclass(frozen=True)
class Known:
    """A training set and what was held out of it."""

    train: Stored
    held_out: Stored


@dataclass(frozen=True)
class Evaluation:
    """What is to be judged, and how.

    Attributes:
        samples: the images to judge.
        origin: what the report says of them before everything else.
        views: the networks in whose features they are compared.
        reference: the images to compare with; None: there are only statistics.
        reference_name: for people.
        statistics: published Gaussians by output of the Inception network.
        own: the name of the view that is the generator's own encoder.
        consistent: whether that encoder made the representations that samples are painted from.
        known: where samples are searched for; None: memorization is not judged.
        resamples: for deviations; fewer than 2: none.
        warnings: what is known to be missing.
    """

    samples: Source
    origin: dict[str, Any]
    views: list[View]
    reference: Source | None
    reference_name: str
    statistics: Mapping[str, Gaussian]
    own: str | None
    consistent: bool
    known: Known | None
    resamples: int
    warnings: list[str] = field(default_factory=list)

    @property
    def held_out_is_reference(self) -> bool:
        """Whether samples are compared with the very images that are held out."""
        facts = self.reference and self.reference.facts
        return self.known is not None and self.known.held_out.facts == facts

    @property
    def name(self) -> str:
        """A name for the report's folder that follows from everything that decides its figures."""
        settings = {
            "samples": self.samples.facts,
            "reference": None if self.reference is None else self.reference.facts,
            "published": self.reference_name,
            "views": [view.facts for view in self.views],
        }
        what = self.origin.get("generator", "images")
        return f"{what}-{len(self.samples)}-{key(settings)[:8]}"


def published(path: Path) -> dict[str, Gaussian]:
    """Read the statistics of an .npz file: `mu` and `sigma` of 2048 features, and `mu_s`, `sigma_s` of the sFID's.

    Raises:
        UserError: the file is none, or the shapes do not belong together.
    """
    there = arrays(path)
    found = {}
    with np.load(path, allow_pickle=False) as values:
        for output, mean, covariance in (("2048", "mu", "sigma"), (SPATIAL, "mu_s", "sigma_s")):
            if mean not in there or covariance not in there:
                continue
            mu, sigma = torch.from_numpy(values[mean]), torch.from_numpy(values[covariance])
            if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
                raise UserError(
                    f"{path}: {mean} {tuple(mu.shape)} and {covariance} {tuple(sigma.shape)} are not the mean (D,) and "
                    f"covariance (D, D) of features"
                )
            found[output] = Gaussian.of_moments(mu, sigma)
    return found


def given_reference(path: Path, size: int) -> tuple[Source | None, dict[str, Gaussian]]:
    """Return the images and the published statistics of a folder or of an .npz file; either may be missing.

    Raises:
        UserError: it is neither, or holds neither.
    """
    if path.is_dir():
        return of_folder(path, size), {}
    statistics = published(path)
    source = of_batch(path) if "arr_0" in arrays(path) or not statistics else None
    return source, statistics


def judge(evaluation: Evaluation, out: Path, cache: Path, save_images: bool, accelerator: Accelerator) -> Report | None:
    """Look at all images on all processes; the main one computes the figures and writes the report into `out`.

    Args:
        evaluation: what is judged.
        out: folder of the report and the images.
        cache: folder of the features.
        save_images: whether samples are written as PNG files.
        accelerator: the processes; all but the first return None.
    """
    start = time.perf_counter()
    samples, views = evaluation.samples, list(evaluation.views)
    extra = [pixel_view(samples.size)] if evaluation.known else []
    kept = [condition_view()] if evaluation.consistent else []
    saved = [saving_view(out / "images")] if save_images else []
    seen = extract(samples, [*views, *extra, *kept, *saved], cache, accelerator, "samples")
    real = {}
    if evaluation.reference is not None:
        real = extract(evaluation.reference, views, cache, accelerator, "reference")
    searched = [*extra, *(view for view in views if view.name == evaluation.own)]
    sets = []
    if evaluation.known is not None:
        sets.append(extract(evaluation.known.train, searched, cache, accelerator, "train"))
        # in all views, to say beside each distance how far real images are
        sets.append(extract(evaluation.known.held_out, [*extra, *views], cache, accelerator, "validation"))
    if not accelerator.is_main_process:
        return None
    seconds = time.perf_counter() - start
    # float64 is what the Frechet distance needs, and not every accelerator has it
    device = accelerator.device if accelerator.device.type == "cuda" else torch.device("cpu")
    luck = Resampling(evaluation.resamples, 0, device)
    warnings, found = list(evaluation.warnings), list[Figure]()
    for view in views:
        reference = Reference(real, evaluation.statistics)
        found += figures.compared(view, seen[view.name], reference, luck, warnings)
        if sets and not evaluation.held_out_is_reference:
            found += figures.floor(view, sets[1][view.name], reference)
    if evaluation.consistent and evaluation.own is not None:
        z = seen["condition"].read("z"), seen[evaluation.own].read("z")
        found += figures.consistency(evaluation.own, *z, luck)
    pictures = []
    if evaluation.known is not None:
        for view in searched:
            train, held_out = (part[view.name] for part in sets)
            near, numbers = figures.memorized(view, seen[view.name], train, held_out, luck)
            found += numbers
            pictures.append(f"neighbors-{view.name}.png")
            draw_neighbors(samples, evaluation.known.train, near, view.name, out / pictures[-1])
    facts = {
        "samples": {**evaluation.origin, "number": len(samples), **samples.facts},
        "reference": {"name": evaluation.reference_name}
        | ({} if evaluation.reference is None else {"number": len(evaluation.reference), **evaluation.reference.facts}),
        "extractors": [{"name": view.name, **view.facts} for view in views],
        "resamples": {"number": evaluation.resamples, "seed": luck.seed},
        "cost": {
            "seconds": round(seconds, 1),
            "processes": accelerator.num_processes,
            "device": str(accelerator.device.type),
        },
    }
    report = Report(facts, found, warnings, pictures)
    report.write(out)
    return report


def sampled(samples: Source) -> bool:
    """Whether samples know what they were painted from."""
    return isinstance(samples, Generated) and samples.pipeline.generator.config.condition == "representation"
