"""One transport for several canvases: they are scrubbed, played and coloured together, without the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anywidget
import ipywidgets
import traitlets

from dgemma_lab.canvas.canvas import Canvas
from dgemma_lab.frontend.scripts import bundled, style

LINKED = ("step", "colour_by", "show")


class Transport(anywidget.AnyWidget):
    """Controls that canvases share. `last`: passes of the longest run; a shorter one rests at its own end."""

    _esm = bundled("playground/transport.js")
    _css = style("frontend/base.css", "canvas/canvas.css")

    step = traitlets.Int(-1, min=-1).tag(sync=True)
    last = traitlets.Int(0).tag(sync=True)
    colour_by = traitlets.Unicode("confidence").tag(sync=True)
    show = traitlets.Unicode("draft").tag(sync=True)
    plays = traitlets.Int(0).tag(sync=True)

    def __init__(self) -> None:
        super().__init__()
        self._links: list[Any] = []

    def tie(self, canvases: Sequence[Canvas], *, play: bool) -> None:
        """Ties the canvases together, each resting at its end; `play` shows the runs once more from their noise."""
        self.untie()
        for canvas in canvases:
            canvas.step = -1
        with self.hold_sync():
            self.step = -1
            self.last = max((len(c.trace) for c in canvases if c.trace is not None), default=0)
        self._links = [
            ipywidgets.jslink((self, name), (canvas, name))
            for canvas in canvases
            for name in LINKED
        ]
        if play:
            self.plays += 1

    def untie(self) -> None:
        """Lets the canvases go."""
        for link in self._links:
            link.unlink()
        self._links = []

    def __repr__(self) -> str:
        return f"Transport({self.last} steps)"
