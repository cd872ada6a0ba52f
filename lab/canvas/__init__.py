"""The canvas: a run's tokens in a fixed grid, every step within reach."""
