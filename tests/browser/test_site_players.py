"""Players in a page of the site: a canvas, a race and a chart live from a file, in the site's own light and dark."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from playwright.sync_api import Page, expect

from dgemma_lab import Canvas, Race, theme
from scripts.build_docs import ROOT
from scripts.players import box_of, exported, script_of
from tests.lab.runs import diffusion


def test_players_live_in_a_page_without_a_network(
    open_page: Callable[..., Page], tmp_path: Path
) -> None:
    trace = diffusion()
    chart = theme.Figure().add_bar(x=[1, 2], y=[3, 4])
    those = [*exported(Canvas(trace)), *exported(Race([trace]))]
    those.append({"kind": "chart", "state": json.loads(chart.to_json())})
    plotly = (files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    style = (ROOT / "docs/site/_static/players.css").read_text()
    for name in ("_static", "notebooks"):
        (tmp_path / name).mkdir()
    (tmp_path / "_static" / "plotly.min.js").write_bytes(plotly)
    page_path = tmp_path / "notebooks" / "page.html"
    body = "\n".join(script_of(one["kind"]) + box_of(one) for one in those)
    page_path.write_text(
        f'<!doctype html><meta charset="utf-8"><style>{style}</style><body data-theme="dark">{body}</body>'
    )
    page = open_page(page_path, color_scheme="light")
    expect(page.locator(".player .dg-cell").first).to_be_visible()
    expect(page.locator(".player .dgr-lane").first).to_be_visible()
    expect(page.locator(".player .main-svg").first).to_be_visible()
    scheme = "node => getComputedStyle(node).colorScheme"
    for inner in (".dg-base", ".main-svg"):
        assert page.locator(f".player {inner}").first.evaluate(scheme) == "dark"
    page.get_by_role("slider", name="Step").first.fill("0")
    expect(page.locator(".player .dg-cell").first).to_be_visible()
