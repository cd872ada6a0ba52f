"""Controls beside a canvas: native inputs from a description, with the keyboard kept to themselves.

form = Form([text_field("prompt"), button("run", main=True)], {"prompt": "…"})
form.on_press(lambda name: print(name, form.values))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anywidget
import traitlets

from dgemma_lab.frontend.scripts import bundled, style

Field = dict[str, Any]


class Form(anywidget.AnyWidget):
    """Fields (see form.js for what one may say), their values, and a line of text below; `alert` makes it an error."""

    _esm = bundled("form/form.js")
    _css = style("frontend/base.css", "form/form.css")

    fields = traitlets.List(traitlets.Dict()).tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    disabled = traitlets.List(traitlets.Unicode()).tag(sync=True)
    message = traitlets.Unicode("").tag(sync=True)
    alert = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self, fields: Sequence[Field] = (), values: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(fields=list(fields), values=dict(values or {}))
        self._pressed: list[Callable[[str], Any]] = []
        self.on_msg(self._receive)

    def on_press(self, callback: Callable[[str], Any]) -> None:
        """Registers what is called with the name of a button that was pressed; "" for Enter where none is `main`."""
        self._pressed.append(callback)

    def say(self, message: str, *, alert: bool = False) -> None:
        """Writes the line below the fields."""
        with self.hold_sync():
            self.message, self.alert = message, alert

    def _receive(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        if content.get("type") == "press":
            self.values = content.get("values", self.values)
            for callback in list(self._pressed):
                callback(content["name"])

    def __repr__(self) -> str:
        return f"Form({', '.join(field['name'] for field in self.fields)})"


def button(name: str, label: str | None = None, *, main: bool = False, **more: Any) -> Field:
    """A button; Enter in a text field presses the `main` one."""
    return {
        "name": name,
        "kind": "button",
        "label": label or name.capitalize(),
        "main": main,
        **more,
    }
