"""The look of the charts: one plotly template that sits on light and dark pages alike.

- Backgrounds are transparent and data colours stand out on white and on near-black (3 : 1 or more).
- Text is drawn in one grey, INK, which can be read on both (4.3 : 1, as much as one shade can have on both). Beside a
  chart stands the style sheet of `follow()`, which turns this grey into the page's own text colour, live when
  JupyterLab's theme is switched; exported pages carry it, too.
- A `Figure` is interactive wherever JavaScript runs. For pages where none does (GitHub, nbconvert) it carries a PNG
  instead, on a transparent ground, where the environment variable DGEMMA_STATIC is 1: that needs kaleido and a Chrome.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import math
import os
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dgemma_core.errors import DgemmaError
from dgemma_lab.frontend.still import static_wanted
from dgemma_lab.given import written

INK = "rgb(121, 121, 122)"  # a shade that nothing else uses: the style sheet finds text by it
GRID = "rgba(128, 128, 128, 0.28)"
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # Okabe & Ito 2008
GREY = "rgba(128, 128, 128, 0.75)"
FAINT_BLUE, FAINT_GREY = "rgba(0, 114, 178, 0.25)", "rgba(128, 128, 128, 0.25)"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE)
SCALE = "Cividis"
HEIGHT = 380  # pixels, where a chart does not say otherwise

CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": False}
"""No logo, and no button that uploads the chart. JupyterLab fits charts to its cells itself; plotly's own way of it
("responsive") shrinks them to nothing when the theme is switched. Pages use it."""

STYLE = (
    f'.js-plotly-plot text[style*="fill: {INK}"] '
    "{ fill: var(--jp-ui-font-color1, CanvasText) !important; }"
)
UNSEEN = ".jp-OutputArea-child:has(.dg-follow) { display: none; }"
"""A style sheet takes no room in a cell's outputs."""
PAGE_STYLE = f":root {{ color-scheme: light dark; }} body {{ background: Canvas; }} {STYLE}"

_AXIS = {
    "gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GREY, "tickcolor": GREY,
    "automargin": True, "title": {"standoff": 8, "font": {"size": 13}},
}  # fmt: skip
TEMPLATE = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "size": 13, "family": "system-ui, sans-serif"},
        "title": {
            "x": 0,
            "xanchor": "left",
            "y": 1,
            "yanchor": "top",
            "yref": "container",
            "pad": {"l": 12, "t": 16},
            "font": {"size": 15},
        },
        "colorway": list(COLOURS),
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 56, "r": 16, "t": 64, "b": 48},
        "legend": {
            "orientation": "h",
            "x": 1,
            "xanchor": "right",
            "y": 0.985,
            "yanchor": "top",
            "yref": "container",
        },
        "hoverlabel": {
            "bgcolor": "#f4f4f4",
            "bordercolor": "#888",
            "font": {"color": "#222", "size": 12},
        },
        "coloraxis": {"colorscale": SCALE, "colorbar": {"outlinewidth": 0, "thickness": 12}},
        "bargap": 0.15,
    }
)


class Figure(go.Figure):
    """A plotly figure in the house's template that survives export: a PNG beside it, pages that follow the theme."""

    # plotly's own would put a page that needs JavaScript beside the bundle below
    _repr_html_ = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.update_layout(template=TEMPLATE, height=self.layout.height or HEIGHT)

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        if static_wanted():  # JupyterLab would prefer a picture to the chart: only one of them
            return {"image/png": base64.b64encode(self.still()).decode()}
        data = {**json.loads(self.to_json()), "config": CONFIG}
        return {"application/vnd.plotly.v1+json": data}

    def _ipython_display_(self) -> None:
        """The chart and, where it is not a picture, the style sheet of its text."""
        from IPython.display import display

        display(self._repr_mimebundle_(), raw=True)
        if not static_wanted():
            display(follow())

    def show(self, *args: Any, **kwargs: Any) -> None:
        """In a notebook as a cell's last line would; with arguments as plotly does."""
        if args or kwargs:
            super().show(*args, **{"config": CONFIG, **kwargs})
            return
        from IPython.display import display

        display(self)

    def to_html(self, *args: Any, **kwargs: Any) -> str:
        """As plotly's, with a page that follows the reader's light or dark setting and uploads nothing."""
        config = {**CONFIG, "responsive": True}
        page = super().to_html(*args, **{"config": config, **kwargs})
        full = "<head>" in page
        style = f"<style>{PAGE_STYLE if full else STYLE}</style>"
        return page.replace("<head>", f"<head>{style}", 1) if full else style + page

    def write_html(self, file: str | os.PathLike[str], **kwargs: Any) -> None:
        """A page of its own, which needs no network."""
        written(file, lambda path: path.write_text(self.to_html(**kwargs), "utf-8"))

    def still(self, *, width: int = 900, scale: float = 1.5) -> bytes:
        """The figure as PNG on a transparent ground, its text in the grey that any page shows.

        DgemmaError where kaleido or its Chrome is missing.
        """
        if not importlib.util.find_spec("kaleido"):
            raise DgemmaError(
                "pictures of charts need kaleido and a Chrome or Chromium: pip install kaleido"
            )
        figure = json.loads(self.to_json())
        try:
            import kaleido

            kaleido.start_sync_server(silence_warnings=True)
            options = {
                "format": "png",
                "width": width,
                "height": self.layout.height,
                "scale": scale,
            }
            return bytes(kaleido.calc_fig_sync(figure, opts=options))
        except Exception as error:  # kaleido raises what its browser makes of it
            raise DgemmaError(
                f"kaleido could not draw the chart, is there a Chrome or Chromium? {error}"
            ) from error


def follow() -> Any:
    """A style sheet under which the text of all charts of a notebook follows JupyterLab's theme."""
    from IPython.display import HTML

    return HTML(f'<div class="dg-follow"><style>{STYLE} {UNSEEN}</style></div>')


def titled(title: str, small: str) -> str:
    """A chart's title with a line of smaller text under it."""
    return f"{title}<br><span style='font-size:12px'>{small}</span>"


def band(
    figure: Figure, x: Any, low: Any, high: Any, name: str, *, colour: str, **where: Any
) -> None:
    """A shaded area between two lines over the same x; `where`: row, col and what else its legend entry needs."""
    edge = {"x": x, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    figure.add_scatter(y=high, **edge, **{**where, "showlegend": False})
    figure.add_scatter(y=low, fill="tonexty", fillcolor=colour, name=name, **edge, **where)


def whole(count: float) -> dict[str, Any]:
    """An axis of whole numbers up to `count`: none in between where there are few."""
    return {"tickformat": "d", "dtick": 1 if count <= 10 else None}


def si(value: float) -> str:
    """A number with the prefix that suits it, e.g. "19.0 G"."""
    power = min(int(math.log10(max(value, 1.0)) // 3), 5)
    return f"{value / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P'][power]}"


def panels(rows: int, columns: int, titles: Sequence[str] = (), **options: Any) -> Figure:
    """A figure of several charts, each with its title over its left edge."""
    figure = Figure(make_subplots(rows, columns, subplot_titles=list(titles) or None, **options))
    for title, axis in zip(figure.layout.annotations, figure.select_xaxes(), strict=False):
        title.update(x=axis.domain[0], xanchor="left", font={"size": 13, "color": INK})
    return figure
