"""Passes on a CPU, partly in C."""
