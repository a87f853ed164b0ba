"""iBOT: self-distillation with masked patches (Zhou et al., ICLR 2022), from its authors' files."""

from __future__ import annotations

from typing import Literal

from rcg.core.registry import ENCODERS
from rcg.encoders._published import StudentTeacher, StudentTeacherConfig


class IBOTConfig(StudentTeacherConfig):
    """iBOT."""

    name: str = "ibot"
    arch: Literal["vit_small", "vit_base", "vit_large"] = "vit_base"
    """Size of the trunk."""


@ENCODERS.register
class IBOT(StudentTeacher):
    """The teacher of an iBOT checkpoint."""

    Config = IBOTConfig
    license = "apache-2.0"
