"""What the one training loop trains."""
