"""First stages: the spaces in which pixel generators work."""
