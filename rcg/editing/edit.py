"""Edit images along directions of z: what they mean changes, the rest of their code stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rcg.core.console import say
from rcg.editing.directions import Direction
from rcg.editing.images import SquareImage
from rcg.editing.reconstruct import open_distance
from rcg.pipeline import Code, Pipeline
from rcg.visual.documents import write_json
from rcg.visual.grids import save_gallery


@dataclass(frozen=True)
class Plan:
    """How to edit.

    Attributes:
        strengths: of the edit; 0 is the reconstruction.
        steps: of the sampler.
        seed: of the noise of generators of tokens.
    """

    strengths: Sequence[float] = (-0.3, 0.0, 0.3)
    steps: int = 100
    seed: int = 0


def move(pipeline: Pipeline, z: Tensor, direction: Direction, strength: float) -> Tensor:
    """Return z `(B, d)` moved along a direction; normalized again, where each z is normalized."""
    return pipeline.representation.transform.renormalize(direction.move(z, strength))


def edit_codes(pipeline: Pipeline, code: Code, direction: Direction, plan: Plan) -> Tensor:
    """Return the images `(B, strengths, 3, S, S)` of codes at each strength, on the CPU."""
    edits = [code._replace(z=move(pipeline, code.z, direction, strength)) for strength in plan.strengths]
    return torch.stack([pipeline.decode(edit, plan.steps, seed=plan.seed).cpu() for edit in edits], dim=1)


def edit(
    pipeline: Pipeline,
    images: Sequence[SquareImage],
    direction: Direction,
    others: Sequence[Direction],
    plan: Plan,
    out: Path,
) -> Tensor:
    """Write NAME.png and NAME.json of an attribute into `out`, and return the images `(B, strengths, 3, S, S)`.

    The figures are measured on edited images that the encoder sees again: by how much the attribute's score
    (`Direction.score`) and the scores of `others` have changed, and the perceptual distance to the originals.
    """
    pixels = torch.stack([image.pixels for image in images])
    code = pipeline.encode(pixels, None if pipeline.has_tokens else plan.steps)
    results = edit_codes(pipeline, code, direction, plan)
    name, distance = open_distance(pipeline)
    rows = []
    for number, strength in enumerate(plan.strengths):
        edited = results[:, number]
        z = pipeline.represent(edited)
        with torch.no_grad():
            pairs = zip(edited.split(1), pixels.split(1), strict=True)
            away = [float(distance(a.to(z.device), b.to(z.device))) for a, b in pairs]
        rows.append(
            {
                "strength": strength,
                "score": float((direction.score(z) - direction.score(code.z)).mean()),
                "others": {other.name: float((other.score(z) - other.score(code.z)).mean()) for other in others},
                "distance": sum(away) / len(away),
            }
        )
    facts = {"attribute": direction.name, "images": [image.name for image in images], "distance": name}
    write_json(facts | {"rows": rows}, out / f"{direction.name}.json")
    panel = torch.cat([pixels[:, None], results], dim=1)
    labels = ["original", *(f"{direction.name} {strength:+g}" for strength in plan.strengths)]
    title = f"{pipeline.config.folder_name} · {direction.name}"
    save_gallery(panel.flatten(0, 1), labels * len(images), title, out / f"{direction.name}.png", columns=len(labels))
    say(str(out / f"{direction.name}.png"))
    return results
