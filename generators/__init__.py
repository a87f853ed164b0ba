"""Pixel generators: networks that paint an image from a representation, a label, or nothing; one file each."""
