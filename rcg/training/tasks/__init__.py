"""The tasks of the training loop, one for each stage."""
