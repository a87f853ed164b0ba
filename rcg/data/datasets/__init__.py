"""Data sets, one file each: a class with a `Config` that is an `rcg.data.images.DataSource`."""
