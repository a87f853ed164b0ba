"""Contracts, registries, checkpoints, randomness: what everything else builds on; imports nothing else of rcg."""
