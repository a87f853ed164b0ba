"""A shift of h that a small network has learned for one property, and its file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import ValidationError

from rcg.config import Config, Depth, Fraction, Width
from rcg.core import checkpoint
from rcg.core.checkpoint import Facts, Part
from rcg.core.errors import UserError
from rcg.diffusion.h_space import Shift, ShiftNetwork
from rcg.editing.directions import Direction
from rcg.editing.phases import Phases
from rcg.pipeline import Code, Pipeline

KIND = "shift"


class ShiftConfig(Config):
    """What a file says of a trained shift."""

    name: str
    """Of the property."""
    generator: str
    """Digest of the generator's weights."""
    channels: Width
    """Of h."""
    width: Width
    """Of the network."""
    block: Depth | None = None
    """Of the generator; null: the middle one."""
    edit: Fraction
    """t_edit."""
    boost: Fraction
    """t_boost."""


@dataclass(frozen=True)
class TrainedShift:
    """A shift that was trained for a property.

    Attributes:
        direction: of z along which the property is measured.
        config: what decides it.
        network: computes it.
        quality: how well it leads along the direction, in words.
    """

    direction: Direction
    config: ShiftConfig
    network: ShiftNetwork
    quality: str = ""

    @property
    def phases(self) -> Phases:
        """The phases that it was trained for."""
        return Phases(self.config.edit, self.config.boost)

    def __call__(self, code: Code) -> Shift:
        """Return the shift, which is the same function of h for all codes."""
        return lambda evaluation: self.network(evaluation.h, evaluation.time)

    def save(self, path: Path, pipeline: Pipeline) -> None:
        """Write it as a safetensors file; `pipeline` is the one that it was trained with."""
        facts = Facts(data=pipeline.generator.data, cond=self.direction.space, details={"quality": self.quality})
        tensors = self.network.state_dict() | {"direction": self.direction.vector}
        checkpoint.save(path, Part(KIND, self.config.model_dump(mode="json"), facts, tensors))

    @classmethod
    def load(cls, path: Path, pipeline: Pipeline) -> TrainedShift:
        """Read a shift of a pipeline's generator.

        Raises:
            UserError: the file is no shift, or one of another generator or another space of z.
        """
        part, space = checkpoint.load(path, KIND), pipeline.representation.space
        try:
            config = ShiftConfig.model_validate(part.config)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, ("config", *first["loc"])))
            raise UserError(f"{path}: {key} is wrong: {first['msg']}") from None
        if config.generator != generator_id(pipeline) or part.facts.cond != space:
            raise UserError(
                f"{path} is a shift of another generator than {pipeline.config.folder_name} of this run: train it "
                f"again here, with tools/train_shift.py"
            )
        tensors = dict(part.tensors)
        vector = tensors.pop("direction", None)
        if vector is None or vector.shape != space.shape or vector.dtype != torch.float32:
            raise UserError(f"{path} must hold a tensor 'direction' {space.shape} of float32: train it again")
        network = checkpoint.rebuild(
            replace(part, tensors=tensors), lambda: ShiftNetwork(config.channels, config.width)
        )
        quality = str(part.facts.details.get("quality", ""))
        direction = Direction(config.name, vector, space, quality)
        return cls(direction, config, network.to(pipeline.device).requires_grad_(False), quality)


def is_shift(path: Path) -> bool:
    """Whether a file holds a trained shift; raises `UserError` where it is no file of ours."""
    return checkpoint.load(path, weights=False).kind == KIND


def generator_id(pipeline: Pipeline) -> str:
    """Return the digest of the weights of a pipeline's generator: of others, h means something else."""
    return checkpoint.digest(pipeline.parts["generator"].tensors)
