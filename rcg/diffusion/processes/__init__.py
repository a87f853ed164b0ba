"""Processes, one file each: how data is corrupted, and what the network predicts."""
