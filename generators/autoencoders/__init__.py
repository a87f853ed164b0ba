"""Autoencoders: maps between images and the space in which a generator works; one file each."""
