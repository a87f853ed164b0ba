"""Image -> representation -> z, image -> latent, computed once."""
