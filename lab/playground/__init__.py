"""The playground: one prompt, several ways to decode it, side by side."""
