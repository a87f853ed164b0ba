"""Pixel generators: networks that generate an image from a representation, a label, or nothing; one file each."""
