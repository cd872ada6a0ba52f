"""Widgets in rows and columns, with what they show where no widget runs."""

from __future__ import annotations

from typing import Any

import ipywidgets
import traitlets

from dgemma_lab.frontend.page import static_wanted


class Columns(ipywidgets.GridBox):
    """Widgets side by side, all of one width."""

    @traitlets.observe("children")
    def _widths(self, change: Any) -> None:
        count = max(1, len(change["new"]))
        self.layout = ipywidgets.Layout(
            grid_template_columns=f"repeat({count}, minmax(0, 1fr))", grid_gap="10px"
        )


class Stack(ipywidgets.VBox):
    """Widgets one below the other; where no widget runs, their stills stand as HTML."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.children)} parts)"

    def settle(self) -> None:
        """Waits for what still runs in it: called before it is shown in a notebook that is made for readers."""

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        if static_wanted():
            self.settle()
        bundle = super()._repr_mimebundle_(**kwargs)
        still = still_html(self)
        if bundle is not None and still:
            bundle["text/html"] = still
        return bundle


def still_html(widget: ipywidgets.Widget) -> str:
    """What a widget and those in it show where no JavaScript runs: what each says by its own `still_html()`."""
    if hasattr(widget, "still_html"):
        return str(widget.still_html())
    parts = [still_html(child) for child in getattr(widget, "children", ())]
    return "".join(f"<div>{part}</div>" for part in parts if part)
