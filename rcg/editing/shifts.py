"""Editing in h-space: shifts of h, when they act, and what is done with them (Asyrp, Kwon, Jeong, Uh, ICLR 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from rcg.core.contracts import Process
from rcg.diffusion.h_space import Asymmetric, ConditionShift, MeanShift, Shift, scaled
from rcg.editing.directions import Direction
from rcg.editing.phases import Phases
from rcg.pipeline import Code, Pipeline

UNIT = 0.3
"""The strength at which a shift is as it was measured or trained."""
STEPS = 40
"""Steps of the sampler, as published, for which a shift is meant. Each step adds it: with more steps it is smaller."""

ShiftOf = Callable[[Code], Shift]
"""The shift of images with some codes."""


class HSpaceEditor:
    """Moves h while images are generated again from their codes; the codes stay.

    Attributes:
        mean: of the shifts at each time, over all images that were edited so far.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        shift_of: ShiftOf,
        phases: Phases,
        block: int | None = None,
        steps: int = 100,
        seed: int = 0,
    ) -> None:
        """Edit by a shift.

        Args:
            pipeline: whose generator has an h-space.
            shift_of: the shift, at strength `UNIT`.
            phases: when to edit, and when to boost quality.
            block: see `rcg.core.contracts.Denoiser.bottleneck`.
            steps: of the sampler.
            seed: of the noise of quality boosting.
        """
        self.pipeline, self.shift_of, self.phases, self.block = pipeline, shift_of, phases, block
        self.steps, self.seed, self.mean = steps, seed, MeanShift()

    def __call__(self, code: Code, strength: float, indices: Sequence[int]) -> Tensor:
        """Return the images `(B, 3, S, S)` of codes, edited by their own shifts, which are added to the mean.

        Args:
            code: B of them.
            strength: of the edit.
            indices: of the images; they seed quality boosting.
        """
        return self._edit(self.mean.recorded(self.shift_of(code)), code, strength, indices)

    def by_mean(self, code: Code, strength: float, indices: Sequence[int]) -> Tensor:
        """Return the images of codes, all edited by the mean shift; see calling."""
        return self._edit(self.mean, code, strength, indices)

    def _edit(self, shift: Shift, code: Code, strength: float, indices: Sequence[int]) -> Tensor:
        network, factor = self.pipeline.generator.network, strength / UNIT * STEPS / self.steps

        def edited(process: Process) -> Process:
            return Asymmetric(process, network, scaled(shift, factor), self.phases.edit, self.block)

        return self.pipeline.decode(
            code, self.steps, seed=self.seed, indices=indices, boost=self.phases.boost, wrap_process=edited
        )


def along(pipeline: Pipeline, direction: Direction, block: int | None = None) -> ShiftOf:
    """Return how h changes when z moves along a direction, by `UNIT`; that needs no training."""
    return toward(pipeline, lambda z: direction.move(z, UNIT), block)


def toward(pipeline: Pipeline, target: Callable[[Tensor], Tensor], block: int | None = None) -> ShiftOf:
    """Return how h changes when z `(B, d)` becomes `target(z)`, the z of other images for example.

    Raises:
        UserError: the generator has no h-space, or no such block.
    """
    pipeline.generator.network.bottleneck(block)
    network, renormalize = pipeline.generator.network, pipeline.representation.transform.renormalize

    def shift_of(code: Code) -> Shift:
        return ConditionShift(network, renormalize(target(code.z.to(pipeline.device))), block)

    return shift_of
