"""Live runs: the model writes in a thread while its canvas fills."""
