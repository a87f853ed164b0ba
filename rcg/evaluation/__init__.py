"""Evaluation of generated images and representations, of encoders and of whole runs."""
