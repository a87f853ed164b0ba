"""Walks from noise to data; each asks the network only through its process."""
