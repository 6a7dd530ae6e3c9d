"""textdiff: diffusion on text, by any transformer."""
