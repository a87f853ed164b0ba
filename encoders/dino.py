"""DINO: a ViT trained by self-distillation (Caron et al., ICCV 2021), from its authors' files."""

from __future__ import annotations

from typing import Literal

from rcg.core.registry import ENCODERS
from rcg.encoders._published import StudentTeacher, StudentTeacherConfig


class DINOConfig(StudentTeacherConfig):
    """DINO."""

    name: str = "dino"
    arch: Literal["vit_small", "vit_base"] = "vit_base"
    """Size of the trunk."""


@ENCODERS.register
class DINO(StudentTeacher):
    """The teacher of a DINO checkpoint."""

    Config = DINOConfig
    license = "apache-2.0"
