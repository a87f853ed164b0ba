"""Processes, devices, precision, sharding."""
