"""Checkpoints, quantised weights and traces on disk."""
