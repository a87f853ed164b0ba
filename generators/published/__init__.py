"""Converters of published checkpoints to parts of a run and back; one file for each kind."""
