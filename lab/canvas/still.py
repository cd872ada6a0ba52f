"""The last frame of a canvas as HTML, for pages where no script runs."""

from __future__ import annotations

import html

from dgemma_core.files.trace import ACCEPTED, AFTER_EOS, CANDIDATE, NOISE, PINNED, REMELTED, Trace
from dgemma_lab.canvas.frames import Cell, frame, ink, line_starts, ramp
from dgemma_lab.frontend.text import readable, visible


def static_html(trace: Trace, *, title: str = "", colour_by: str = "confidence") -> str:
    """The last frame as HTML with inline styles only, for pages that remove scripts and sheets."""
    parts = []
    if head := title or str(trace.metadata.get("prompt", "")):
        parts.append(f'<div style="font:600 13px sans-serif">{html.escape(head)}</div>')
    starts = line_starts(trace)
    for canvas in frame(trace, len(trace), colour_by=colour_by):
        cells = "".join(
            ("<br>" if i and cell.position in starts else "") + _static_cell(trace, cell)
            for i, cell in enumerate(canvas)
        )
        parts.append(f'<div style="max-width:960px;line-height:26px;margin:4px 0">{cells}</div>')
    text = readable(
        "".join(trace.text(token) for token in trace.ids if token not in trace.eos_ids())
    )
    parts.append(f"<pre>{html.escape(text)}</pre>")
    return f"<div>{''.join(parts)}</div>"


def _static_cell(trace: Trace, cell: Cell) -> str:
    base = "display:inline-block;min-width:44px;margin:1px;padding:0 3px;text-align:center;"
    base += "font:12px/22px monospace;"
    if cell.state == AFTER_EOS or cell.token is None:
        return f'<span style="{base}border:1px solid transparent">·</span>'
    style = base
    if cell.state in (ACCEPTED, PINNED) and cell.shade is not None:
        fill = ramp(cell.shade)
        style += f"background:rgb{fill};color:rgb{ink(fill)};"
    borders = {NOISE: "1px dotted", CANDIDATE: "1px dashed", PINNED: "3px double"}
    style += f"border:{borders.get(cell.state, '1px solid')};"
    if cell.state == ACCEPTED:
        style += "border-color:transparent;"
    if cell.state == REMELTED:
        style += "text-decoration:line-through;"
    text = html.escape(visible(trace.text(cell.token), 12))
    return f'<span style="{style}"><bdi>{text}</bdi></span>'
