"""Data sets, one file each; each file's class takes its `Config` and is an `rcg.data.images.Source`."""
