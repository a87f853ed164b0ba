"""Image grids, curves, HTML."""
