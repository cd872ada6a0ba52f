"""The shell of the HTML pages: one style for light and dark, plotly within, no network. Templates: pages/."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment

PALETTE = ("#3b82c4", "#d9822b", "#8a63b8", "#5b8c5a", "#b3476b", "#6b7280")
"""Colours of the sides that hold on light and dark ground, also for the colour-blind."""


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )


def _part(macro: str, *values: Any) -> str:
    return str(getattr(_templates().get_template("parts.html").module, macro)(*values))


def document(title: str, parts: Sequence[str], figures: Mapping[str, Any]) -> str:
    """A standalone page. parts: its body as HTML; figures: plotly figures by the names of their `chart`s.

    plotly.js stands in it once, and not at all where nothing is drawn.
    """
    from plotly.offline import get_plotlyjs

    drawn = ",".join(f'"{name}":{_script(figure.to_json())}' for name, figure in figures.items())
    return (
        _templates()
        .get_template("page.html")
        .render(
            title=title,
            parts=[Markup(part) for part in parts],
            figures=Markup(f"{{{drawn}}}") if figures else "",
            plotly=Markup(get_plotlyjs()) if figures else "",
        )
    )


def chart(name: str, title: str) -> str:
    """The place of the figure called `name`, with its caption."""
    return _part("chart", name, title)


def table_of(head: Sequence[str], rows: Sequence[Sequence[Any]], *, first_left: bool = True) -> str:
    """A table. first_left: only the first column is words; otherwise all are."""
    return _part("table", head, rows, not first_left)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, for what is printed."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def folded(summary: str, body: str) -> str:
    """A part that opens when its summary is clicked. body: HTML."""
    return _part("folded", summary, Markup(body))


def heading(text: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{escaped(text)}</h{level}>"


def note(text: str) -> str:
    """A remark in small print."""
    return f"<p class='note'>{escaped(text)}</p>"


def answer(text: str) -> str:
    """What a page opens with."""
    return f"<p class='answer'>{escaped(text)}</p>"


def bullets(lines: Sequence[str]) -> str:
    """A list."""
    return "<ul>" + "".join(f"<li>{escaped(line)}</li>" for line in lines) + "</ul>"


def escaped(value: Any) -> str:
    """As text within HTML."""
    return str(Markup.escape(str(value)))


def _script(text: str) -> str:
    """JSON that cannot end the script element that it stands in."""
    return text.replace("</", "<\\/")
