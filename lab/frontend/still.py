"""Stills: what a widget leaves in a notebook for pages on which it cannot live.

A saved notebook knows a widget by the name that its kernel gave it, so without that kernel there is nothing to show.
A `Still` therefore displays two outputs: its last state as plain HTML, and the widget. In JupyterLab the HTML is hidden
as long as the widget lives; it is what remains when the notebook is opened again, exported or shown by GitHub.
"""

from __future__ import annotations

import os
import uuid
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import display, update_display

NOTE = "Saved picture. Run this cell to make it live."

STYLE = (
    # JupyterLab's "model not found" is a widget output without elements.
    ".jp-OutputArea-child:has(.dg-still) + .jp-OutputArea-child > .jupyter-widgets:not(:has(*)), "
    ".jp-OutputArea-child:has(.dg-still):has(+ .jp-OutputArea-child .dg-base) { display: none; }"
)


class Still:
    """Mixin of a widget (before its base class) that leaves a still; `still_html` says what it looks like."""

    _shown: tuple[str, ...] = ()  # display ids of the stills

    def still_html(self) -> str:
        """The present state as HTML with inline styles only, for pages where no widget runs; "" for nothing yet."""
        raise NotImplementedError

    def still_picture(self) -> bytes | None:
        """The present state as PNG, None where HTML alone will do."""
        return None

    def settle(self) -> None:
        """Waits for what still runs in it: called before it is shown in a notebook that is made for readers."""

    def refresh_still(self) -> None:
        """Puts the present state into the stills that are displayed already; from any thread."""
        if get_ipython() is not None:
            for name in self._shown:
                update_display(self._bundle(), display_id=name, raw=True)

    def _bundle(self) -> dict[str, Any]:
        found = self.still_html()
        note = f'<div style="font:12px sans-serif;opacity:0.75">{NOTE}</div>' if found else ""
        style = f"<style>{STYLE}</style>"
        return {
            "text/html": f'<div class="dg-still">{style}{found}{note}</div>',
            "text/plain": repr(self),
        }

    def _ipython_display_(self) -> None:
        if static_wanted():
            self.settle()
            bundle: dict[str, Any] = {
                "text/html": self.still_html(),
                "text/plain": repr(self),
            }
            picture = self.still_picture()
            display(bundle | ({} if picture is None else {"image/png": picture}), raw=True)
            return
        name = uuid.uuid4().hex
        self._shown = (*self._shown, name)
        display(self._bundle(), raw=True, display_id=name)
        found = self._repr_mimebundle_()  # type: ignore[attr-defined]
        data, metadata = found if isinstance(found, tuple) else (found, None)
        display(data, metadata=metadata, raw=True)


def static_wanted() -> bool:
    """Outputs are to be complete when they are shown (DGEMMA_STATIC=1): a notebook is being made for readers."""
    return os.environ.get("DGEMMA_STATIC") == "1"
