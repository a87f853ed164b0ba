"""Representation-conditioned image generation: unlabelled images that generate as well as labelled ones."""

__version__ = "0.1.0"
