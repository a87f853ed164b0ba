"""What a trained generator can do to a given image."""
