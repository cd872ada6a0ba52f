"""Draws traces: widgets and charts of what happened at each denoising step."""

from dgemma_lab.canvas import Canvas, Steer

__all__ = ["Canvas", "Steer"]
