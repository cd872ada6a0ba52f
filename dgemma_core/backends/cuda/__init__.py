"""Passes on a GPU: static rows, graphs, Triton kernels."""
