"""Numbers by which representations and images are judged."""
