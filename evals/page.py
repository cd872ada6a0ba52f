"""The shell of the HTML pages: one style for light and dark, plotly within, no network."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any


def document(title: str, parts: Sequence[str], figures: Mapping[str, Any]) -> str:
    """A standalone page. parts: its body as HTML; figures: plotly figures by the names of their `chart`s."""
    from plotly.offline import get_plotlyjs

    return _PAGE.format(
        title=escaped(title),
        body="\n".join(parts),
        plotly=get_plotlyjs(),
        figures="{" + ",".join(f'"{k}":{_script(v.to_json())}' for k, v in figures.items()) + "}",
    )


def chart(name: str, title: str) -> str:
    """The place of the figure called `name`, with its caption."""
    return (
        f"<figure><figcaption>{escaped(title)}</figcaption>"
        f"<div class='chart' id='{name}' role='img' aria-label='{escaped(title)}'></div></figure>"
    )


def table_of(head: Sequence[str], rows: Sequence[Sequence[Any]], *, first_left: bool = True) -> str:
    """A table. first_left: only the first column is words; otherwise all are."""
    cells = "".join(f"<th>{escaped(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escaped(value)}</td>" for value in row) + "</tr>" for row in rows
    )
    kind = "" if first_left else " class='words'"
    return (
        f"<div class='scroll'><table{kind}><thead><tr>{cells}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def escaped(value: Any) -> str:
    """As text within HTML."""
    return html.escape(str(value))


def _script(text: str) -> str:
    """JSON that cannot end the script element that it stands in."""
    return text.replace("</", "<\\/")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --ground: #ffffff; --ink: #1d2330; --soft: #5b6472; --line: #d9dde3; --band: #f4f6f8; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ground: #14181f; --ink: #e6e9ee; --soft: #a3acb9; --line: #363e4a; --band: #1c222b; }}
}}
body {{ background: var(--ground); color: var(--ink); margin: 2rem auto; max-width: 60rem;
  padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.5rem; }}
.answer {{ font-size: 1.15rem; border-left: 4px solid #3b82c4; padding: .3rem 0 .3rem 1rem; }}
.note, figcaption {{ color: var(--soft); font-size: .9rem; }}
figure {{ margin: 1.5rem 0; }} .chart {{ width: 100%; }}
.multiples {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 0 1.5rem; }}
.multiples figure {{ min-width: 0; margin: .5rem 0; }}
.scroll {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-size: .9rem; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }}
th {{ color: var(--soft); font-weight: 600; }}
th:first-child, td:first-child, .words td, .words th {{ text-align: left; }}
tbody tr:nth-child(even) {{ background: var(--band); }}
.words td {{ overflow-wrap: anywhere; }} .words td:first-child {{ white-space: nowrap; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
<script>{plotly}</script>
<script>
const figures = {figures};
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function theme() {{
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  const axis = {{ color: ink, gridcolor: line, zerolinecolor: line, linecolor: line }};
  return {{ ink, axis }};
}}
function draw() {{
  const {{ ink, axis }} = theme();
  for (const [name, figure] of Object.entries(figures)) {{
    const layout = {{ ...figure.layout, template: {{}},
      font: {{ ...(figure.layout.font || {{}}), color: ink, family: "system-ui, sans-serif" }} }};
    for (const key of Object.keys(layout))
      if (/^[xy]axis/.test(key)) layout[key] = {{ ...layout[key], ...axis }};
    Plotly.react(name, figure.data, layout, {{ responsive: true, displaylogo: false }});
  }}
}}
draw();
dark.addEventListener("change", draw);
</script>
</body>
</html>
"""
