"""What a person does to an image with a trained run: reconstruct it, interpolate, change what it means."""
