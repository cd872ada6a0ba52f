"""The exported pages in Firefox: they do what they do in Chromium (firefox.mjs asks them)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dgemma_core import Observe
from dgemma_core.files.trace import Trace
from dgemma_lab import Canvas
from dgemma_lab.charts.drafts import predicted_speculation
from dgemma_lab.race.race import Race
from dgemma_lab.session.plan import record
from tests.browser import test_canvas_page, test_canvas_views, test_constraint_page, test_race_page
from tests.constraints.conftest import no_automata_of_the_user
from tests.files.fake_events import diffusion_events, draft_events, token_events
from tests.lab import runs

__all__ = ["no_automata_of_the_user"]
HERE = Path(__file__).parent


@pytest.mark.usefixtures("no_automata_of_the_user")
def test_pages_do_in_firefox_what_they_do_in_chromium(tmp_path: Path) -> None:
    firefox = shutil.which("firefox-esr") or shutil.which("firefox")
    assert firefox, "this test needs firefox on the PATH: run `make test`, which installs it"
    Canvas(test_canvas_page.make()).to_html(tmp_path / "run.html", play=False)
    Canvas(test_canvas_views.taken_back()).to_html(tmp_path / "flash.html", play=False)
    Canvas(test_canvas_views.drafted()).to_html(tmp_path / "rounds.html", play=False)
    board = Canvas(test_canvas_views.make(test_canvas_views.BOARD))
    board.to_html(tmp_path / "board.html")
    board.compare(test_canvas_views.make(test_canvas_views.OTHER_BOARD), "B")
    meta, tails = test_canvas_page.live_tails()
    told = {"meta": meta, "tails": tails, "against": board._against}
    (tmp_path / "told.json").write_text(json.dumps(told), "utf-8")
    answer = test_race_page.ANSWER
    lanes = (diffusion_events(answer), token_events(answer), draft_events(answer, [3] * 5 + [1]))
    Race(
        [Trace.record(e, metadata={"prompt": "Count"}, decode=" w{}".format) for e in lanes]
    ).to_html(tmp_path / "race.html")
    bound = record(
        runs.loaded(), "A list", constraint=test_constraint_page.LISTED, observe=Observe(top_k=5)
    )  # fmt: skip
    Canvas(bound).to_html(tmp_path / "bound.html", play=False)
    predicted_speculation().write_html(tmp_path / "chart.html")
    asked = subprocess.run(
        ["node", "--test", HERE / "firefox.mjs"],
        env={**os.environ, "PAGES": str(tmp_path), "FIREFOX": firefox},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert "# pass 14" in asked.stdout, asked.stdout
