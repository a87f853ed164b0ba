"""Representation-conditioned image generation: unlabeled images that generate as well as labeled ones."""

__version__ = "0.1.0"
