"""The players of the site: they are taken out of a notebook when it is run, and stand in its page."""

from __future__ import annotations

import json

import nbformat
import pytest

from dgemma_lab import Canvas, Race
from scripts.build_docs import ROOT
from scripts.players import CHART, KINDS, PLAYER, enlivened, exported, taken
from tests.lab.runs import diffusion

KEPT = sorted((ROOT / "docs" / "site" / "players").glob("*.json"))


def shown(*bundles: dict) -> nbformat.NotebookNode:
    outputs = [nbformat.v4.new_output("display_data", data=data) for data in bundles]
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", id="a", outputs=outputs)])


def test_players_leave_the_notebook_and_stand_in_the_page() -> None:
    (canvas,) = exported(Canvas(diffusion(), title="</script>"))
    chart = {"data": [], "layout": {"height": 300}}
    still, picture = {"text/html": "a still"}, {"image/png": "iVBO", CHART: chart}
    notebook = shown(still, {PLAYER: canvas}, {PLAYER: canvas}, picture)
    players = taken(notebook)
    assert [dict(output.data) for output in notebook.cells[0].outputs] == [
        still,
        {"image/png": "iVBO"},
    ]
    assert players == {"a": {"0": [canvas, canvas], "1": [{"kind": "chart", "state": chart}]}}

    enlivened(notebook, json.loads(json.dumps(players)))
    widget, drawn = (output["data"]["text/html"] for output in notebook.cells[0].outputs)
    assert widget.count('class="player" data-kind="canvas"') == 2 and "a still" not in widget
    assert widget.count('<script type="module">') == drawn.count('<script type="module">') == 1
    assert widget.count("</script>") == 3  # none of a title
    assert 'style="height: 300px"' in drawn and "http" not in drawn.partition("<div")[0]


def test_an_empty_canvas_has_no_player() -> None:
    assert not list(exported(Canvas()))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_the_kept_players_fit_the_notebooks_and_the_present_widgets(path) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / f"{path.stem}.ipynb", as_version=4)
    cells = {cell.id: cell for cell in notebook.cells}
    trace = diffusion()
    known = {
        one["kind"]: set(one["state"])
        for w in (Canvas(trace), Race([trace]))
        for one in exported(w)
    }
    assert set(known) == set(KINDS)
    players = json.loads(path.read_text(encoding="utf-8"))
    for name, outputs in players.items():
        for number, those in outputs.items():
            assert cells[name].outputs[int(number)]
            for one in those:
                assert one["kind"] == "chart" or set(one["state"]) == known[one["kind"]]
