"""Players of the site: canvases, races and charts of the notebooks that stay alive where there is no kernel.

A notebook is committed with stills alone. When `scripts/execute_notebooks.py` runs it, the kernel loads this module as
an IPython extension: what the lab shows is then exported beside each still (`Canvas.to_html`, `Race.to_html`, a chart's
JSON). `taken` moves it out of the notebook, into docs/site/players. `scripts/build_docs.py` has `enlivened` put it into
the pages in place of the stills, with the scripts and styles of the present lab.
"""

from __future__ import annotations

import html
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLAYER = "application/vnd.dgemma.player+json"
CHART = "application/vnd.dgemma.chart+json"
KINDS = {
    "canvas": ("canvas/canvas.js", ("frontend/base.css", "canvas/canvas.css")),
    "race": ("race/race.js", ("frontend/base.css", "form/form.css", "race/race.css")),
}
"""Of the lab's widgets that play without a kernel: script and style sheets, by their paths from lab/."""
Output = dict[str, Any]


# in the kernel


def load_ipython_extension(_shell: Any) -> None:
    """From now on each still is followed by its players, and each chart's picture has its JSON beside it."""
    from IPython.display import display

    from dgemma_lab.frontend.still import Still
    from dgemma_lab.theme import Figure

    show, draw = Still._ipython_display_, Figure._repr_mimebundle_

    def shown(self: Any) -> None:
        show(self)
        for player in exported(self):
            display({PLAYER: player}, raw=True)

    def drawn(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**draw(self, *args, **kwargs), CHART: json.loads(self.to_json())}

    Still._ipython_display_ = shown  # type: ignore[method-assign]
    Figure._repr_mimebundle_ = drawn  # type: ignore[method-assign]


def exported(widget: Any) -> Iterator[dict[str, Any]]:
    """Kind and state of a canvas or race, or of all that stand in a box."""
    still = {"play": False} if hasattr(widget, "trace") else {}
    full = getattr(widget, "trace", widget)  # an empty canvas has nothing to play
    if full and hasattr(widget, "to_html"):
        with tempfile.TemporaryDirectory() as folder:
            page = widget.to_html(Path(folder) / "page.html", **still).read_text("utf-8")
        found = re.search(r'<div id="(\w+)"></div>.*?id="state">(.*?)</script>', page, re.DOTALL)
        assert found
        yield {"kind": found[1], "state": json.loads(found[2])}
    for child in getattr(widget, "children", ()):
        yield from exported(child)


# in the notebook


def taken(notebook: Any) -> dict[str, dict[str, list[Output]]]:
    """Takes the players out of a notebook: by cell's id and output's number, what may stand there instead."""
    found: dict[str, dict[str, list[Output]]] = {}
    for cell in notebook.cells:
        kept: list[Any] = []
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            player, chart = data.get(PLAYER), data.pop(CHART, None)
            if player is None:
                kept.append(output)
            one = player or (chart and {"kind": "chart", "state": chart})
            if one:
                found.setdefault(cell.id, {}).setdefault(str(len(kept) - 1), []).append(one)
        if "outputs" in cell:
            cell.outputs = kept
    return found


# in the page


def enlivened(page: dict[str, Any], players: dict[str, dict[str, list[Output]]]) -> None:
    """Puts players in the place of a notebook's stills, in place. page: the notebook as json."""
    loaded: set[str] = set()
    for cell in page["cells"]:
        for number, those in players.get(cell["id"], {}).items():
            parts = []
            for one in those:
                if one["kind"] not in loaded:
                    loaded.add(one["kind"])
                    parts.append(script_of(one["kind"]))
                parts.append(box_of(one))
            cell["outputs"][int(number)] = {
                "output_type": "display_data", "metadata": {}, "data": {"text/html": "\n".join(parts)},
            }  # fmt: skip


def box_of(one: Output) -> str:
    """Where a player will stand, and its state."""
    state = json.dumps(one["state"], ensure_ascii=False, separators=(",", ":"))
    state = state.replace("<", "\\u003c")  # nothing in it may end the script
    height = one["state"].get("layout", {}).get("height", 0)
    style = f' style="height: {height}px"' if height else ""
    kind = html.escape(one["kind"])
    return (
        f'<div class="player" data-kind="{kind}"{style}>'
        f'<script type="application/json">{state}</script></div>'
    )


def script_of(kind: str) -> str:
    """What makes all boxes of a kind on the page live. Modules run when the page has been read, in their order."""
    from dgemma_lab import theme
    from dgemma_lab.frontend.scripts import bundled, style

    each = (
        f"for (const box of document.querySelectorAll('.player[data-kind={kind}]')) {{\n"
        "  const state = JSON.parse(box.textContent);\n  box.replaceChildren();\n"
    )
    if kind == "chart":
        config = json.dumps({**theme.CONFIG, "responsive": True})
        return (
            f"<style>{theme.STYLE}</style>\n"
            '<script defer src="../_static/plotly.min.js"></script>\n'
            f'<script type="module">\n{each}  Plotly.newPlot(box, state.data, state.layout, {config});\n}}\n</script>'
        )
    name, sheets = KINDS[kind]
    return (
        f"<style>\n{style(*sheets)}</style>\n"
        f'<script type="module">\n{bundled(name)}\n{each}  mount(state, box);\n}}\n</script>'
    )
