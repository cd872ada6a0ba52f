"""Widgets in rows and columns, with what they show where no widget runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets
import traitlets

from dgemma_lab.frontend.still import Still


class Columns(ipywidgets.GridBox):
    """Widgets side by side, all of one width."""

    @traitlets.observe("children")
    def _widths(self, change: Any) -> None:
        count = max(1, len(change["new"]))
        self.layout = ipywidgets.Layout(
            grid_template_columns=f"repeat({count}, minmax(0, 1fr))", grid_gap="10px"
        )


class Stack(Still, ipywidgets.VBox):
    """Widgets one below the other, with a still of those among them that have one."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.children)} parts)"

    def still_html(self) -> str:
        return _still_of(self.children)


def _still_of(widgets: Sequence[ipywidgets.Widget]) -> str:
    parts = [
        widget.still_html()
        if isinstance(widget, Still)
        else _still_of(getattr(widget, "children", ()))
        for widget in widgets
    ]
    return "".join(f"<div>{part}</div>" for part in parts if part)
