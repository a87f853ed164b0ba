"""Representation-conditioned image generation: unlabeled images that generate as well as labeled ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rcg.config import load_experiment
    from rcg.pipeline import Pipeline

__all__ = ["Pipeline", "__version__", "load_experiment"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the public API when it is asked for: command lines that only print help need no torch."""
    if name == "Pipeline":
        from rcg.pipeline import Pipeline

        return Pipeline
    if name == "load_experiment":
        from rcg.config import load_experiment

        return load_experiment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
