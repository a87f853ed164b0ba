"""Samplers, one file each: from noise to data; each is its own config."""
