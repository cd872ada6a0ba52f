"""The house's figures: legible on light and dark, no upload, whole on export."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import plotly.graph_objects as go
import pytest

from dgemma_core.errors import DgemmaError
from dgemma_lab import theme
from dgemma_lab.theme import Figure


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> Figure:
    monkeypatch.setenv("DGEMMA_STATIC", "0")
    made = Figure()
    made.add_scatter(x=[1, 2], y=[3, 4])
    return made.update_layout(title="A chart")


def luminance(colour: str) -> float:
    numbers = (
        [int(part, 16) for part in re.findall("..", colour[1:])]
        if colour[0] == "#"
        else map(int, re.findall(r"\d+", colour))
    )
    linear = [
        v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4
        for v in numbers
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", "#111111"])
def test_colours_stand_out_on_light_and_dark_pages(page: str) -> None:
    assert contrast(theme.INK, page) >= 4.3
    for colour in theme.COLOURS:
        assert contrast(colour, page) >= 3.0, colour


def test_a_figure_is_a_plotly_figure_without_upload(figure: Figure) -> None:
    assert isinstance(figure, go.Figure)
    bundle = figure._repr_mimebundle_()
    data = bundle["application/vnd.plotly.v1+json"]
    assert data["config"]["showSendToCloud"] is False and list(bundle) == [
        "application/vnd.plotly.v1+json"
    ]
    assert data["layout"]["template"]["layout"]["paper_bgcolor"] == "rgba(0,0,0,0)"


def test_a_figure_has_a_height_of_its_own_in_a_notebook(figure: Figure) -> None:
    """Fitted to its cell's height it would shrink to nothing when JupyterLab's theme is switched."""
    assert figure.layout.height == theme.HEIGHT and theme.panels(1, 2).layout.height == theme.HEIGHT
    assert Figure(layout={"height": 200}).layout.height == 200
    data = figure._repr_mimebundle_()["application/vnd.plotly.v1+json"]
    assert data["config"]["responsive"] is False


def test_pages_follow_the_theme_and_need_no_network(figure: Figure, tmp_path: Path) -> None:
    figure.write_html(tmp_path / "chart.html")
    page = (tmp_path / "chart.html").read_text("utf-8")
    assert theme.PAGE_STYLE in page and '"showSendToCloud": false' in page
    assert not re.search(r'<script[^>]+src="http', page)
    part = figure.to_html(full_html=False, include_plotlyjs=False)
    assert part.startswith("<style>") and "Canvas;" not in part


def test_the_style_sheet_finds_the_text_by_its_colour(figure: Figure) -> None:
    assert theme.INK in theme.follow().data
    assert figure.layout.template.layout.font.color == theme.INK


def test_a_chart_is_interactive_unless_a_page_without_scripts_is_made(
    figure: Figure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JupyterLab shows the picture where there is one: so there is none, kaleido installed or not."""
    monkeypatch.setattr(Figure, "still", lambda self: b"png")
    monkeypatch.delenv("DGEMMA_STATIC")
    assert list(figure._repr_mimebundle_()) == ["application/vnd.plotly.v1+json"]
    monkeypatch.setenv("DGEMMA_STATIC", "1")
    assert figure._repr_mimebundle_() == {"image/png": "cG5n"}


def test_a_picture_has_no_ground_of_its_own_and_text_for_any_page(
    figure: Figure, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Any]] = []

    def draw(given: dict[str, Any], opts: Any) -> bytes:
        drawn.append(given)
        return b"png"

    kaleido = SimpleNamespace(start_sync_server=lambda **_: None, calc_fig_sync=draw)
    monkeypatch.setitem(sys.modules, "kaleido", kaleido)
    monkeypatch.setattr(theme.importlib.util, "find_spec", lambda name: object())
    assert figure.still() == b"png"
    layout = drawn[0]["layout"]["template"]["layout"] | drawn[0]["layout"]
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"
    assert layout["font"]["color"] == theme.INK


def test_a_missing_browser_is_raised(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theme.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("DGEMMA_STATIC", "1")
    with pytest.raises(DgemmaError, match="need kaleido"):
        figure._repr_mimebundle_()


def test_panels_have_their_titles_at_the_left() -> None:
    made = theme.panels(1, 2, ["one", "two"])
    assert [note.x for note in made.layout.annotations] == [
        axis.domain[0] for axis in made.select_xaxes()
    ]
