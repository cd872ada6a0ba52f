"""Live runs: the model writes in a thread of its own while its canvas fills."""
