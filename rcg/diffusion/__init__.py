"""A network times a process, given a condition: models, guidance, processes, samplers."""
