"""The race: lanes hold what the traces do, pages are whole, wrong races are refused."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgemma_core.errors import DgemmaError, RequestError
from dgemma_core.files.trace import Trace
from dgemma_core.generation.settings import MODES
from dgemma_lab.race.race import DRAFT, HIDDEN, STANDING, Race, lane, record_race
from dgemma_lab.session.plan import record
from tests.files.fake_events import EOS, diffusion_events, token_events
from tests.lab import runs
from tests.lab.runs import PROMPT

ANSWER = [*range(10, 32), EOS]  # 23 tokens: two canvases of 16


@pytest.fixture(scope="module")
def canvases() -> Trace:
    return Trace.record(
        diffusion_events(ANSWER), metadata={"prompt": "count"}, decode="<{}>".format
    )


@pytest.fixture(scope="module")
def tokens() -> Trace:
    return Trace.record(token_events(ANSWER), decode="<{}>".format)


def unpacked(packed: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed), kind)


def test_a_lane_is_the_draft_pass_by_pass(canvases: Trace) -> None:
    made = lane("diffusion", canvases)
    ids, marks = unpacked(made["ids"], "<u4"), unpacked(made["marks"], "u1")
    standing = canvases.accepted | canvases.pinned
    expected = np.where(standing, canvases.tokens_out, canvases.argmax)
    texts = [made["texts"][at] for at in ids]
    assert texts == ["" if token == EOS else f"<{token}>" for token in expected.tolist()]
    hidden = canvases.after_eos()
    assert ((marks == HIDDEN) == hidden).all() and hidden.any()
    assert ((marks == STANDING) == (standing & ~hidden)).all()
    assert ((marks == DRAFT) == (~standing & ~hidden)).all()


def test_tokens_are_kept_at_their_commits(canvases: Trace, tokens: Trace) -> None:
    assert [commit["kept"] for commit in lane("d", canvases)["commits"]] == [16, 23]
    assert [
        commit["seconds"] for commit in lane("d", canvases)["commits"]
    ] == canvases.commit_seconds.tolist()
    causal = lane("a", tokens)
    assert [commit["kept"] for commit in causal["commits"]] == list(range(1, 24))
    assert causal["free"] == 1 and causal["passes"] == 23
    kept = [causal["texts"][at] for at in causal["kept"]]
    assert kept == [f"<{token}>" for token in ANSWER[:-1]] + [""]


@pytest.mark.slow
def test_recorded_ways_share_prompt_seed_and_limits() -> None:
    traces = record_race(
        runs.loaded(eos_token_ids=()), PROMPT, steps=3, temperature=1.0, seed=4, max_new_tokens=10
    )
    one, two = traces["diffusion"], traces["autoregressive"]
    assert (one.mode, two.mode) == ("diffusion", "autoregressive")
    assert len(one.ids) == len(two.ids) == 10
    assert one.seed == two.seed == 4 and one.steps == 3 and two.metadata["temperature"] == 1.0
    assert Race(traces).title == PROMPT


def test_the_modes_take_turns_and_the_run_of_median_time_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns: list[str] = []

    def timed(loaded: Any, prompt: Any, **options: Any) -> Trace:
        trace = record(loaded, prompt, **options)
        if options["max_new_tokens"] > 2:
            turns.append(trace.mode)
        return replace(trace, total_seconds=float(1 + 7 * len(turns) % 5))

    monkeypatch.setattr("dgemma_lab.race.race.record", timed)
    modes = ("diffusion", "autoregressive")
    traces = record_race(runs.loaded(), PROMPT, modes=modes, max_new_tokens=6, repeats=3)
    assert turns == ["diffusion", "autoregressive", "autoregressive", "diffusion", *turns[:2]]
    for trace in traces.values():
        seconds = trace.metadata["measured"]["seconds"]
        assert len(seconds) == 3 and trace.total_seconds == sorted(seconds)[1]
    race = Race(traces)
    assert [made["times"] for made in race.lanes] == [
        trace.metadata["measured"]["seconds"] for trace in traces.values()
    ]
    assert "1 thread" in race.note or "threads" in race.note
    busy = {
        name: replace(
            t, metadata={**t.metadata, "measured": {**t.metadata["measured"], "others": 0.5}}
        )
        for name, t in traces.items()
    }
    assert "Other programs used 50% of this machine" in Race(busy).note
    assert "Other programs used 50% of this machine" in Race(busy).still_html()
    with pytest.raises(RequestError, match="repeats must be at least 1"):
        record_race(runs.loaded(), PROMPT, repeats=0)


@pytest.mark.slow
def test_three_modes_race_and_a_draft_is_passes_of_its_round() -> None:
    loaded = runs.loaded(eos_token_ids=())
    options = {"steps": 3, "draft": "fixed", "draft_positions": 4, "max_new_tokens": 10}
    traces = record_race(loaded, PROMPT, **options)
    assert [trace.mode for trace in traces.values()] == list(MODES)
    assert traces["speculative"].ids.tolist() == traces["autoregressive"].ids.tolist()
    lanes = {made["name"]: made for made in Race(traces).lanes}
    rounds = lanes["speculative"]["rounds"]
    assert 1 + sum(made["passes"] for made in rounds) == lanes["speculative"]["passes"]
    assert [made["seconds"] for made in rounds] == sorted(made["seconds"] for made in rounds)
    assert lanes["diffusion"]["rounds"] == lanes["autoregressive"]["rounds"] == []
    with pytest.raises(RequestError, match="draft is of mode 'speculative', which does not race"):
        record_race(loaded, PROMPT, modes=("diffusion", "autoregressive"), draft="fixed")


def test_a_page_holds_everything_and_asks_for_nothing(
    canvases: Trace, tokens: Trace, tmp_path: Path
) -> None:
    hostile = replace(tokens, strings={**tokens.strings, 10: "</script><img src=x>"})
    page = Race([canvases, hostile]).to_html(tmp_path / "race.html").read_text("utf-8")
    assert (
        "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page
    )
    data = page.split('<script type="application/json" id="state">')[1].split("</script>")[0]
    lanes = json.loads(data)["lanes"]
    assert [made["name"] for made in lanes] == ["diffusion", "autoregressive"]
    assert "</script><img src=x>" in lanes[1]["texts"]
    assert page.count("</script>") == 2
    assert "import " not in page.split('<script type="module">')[1]


def test_the_payload_stays_small() -> None:
    """Two canvases of 256 and 48 passes each, against 512 tokens one by one."""
    long = [*range(10, 59)] * 10 + [EOS]
    one = Trace.record(
        diffusion_events(long, canvas_length=256, steps=48, seed=1), decode="tok{}".format
    )
    two = Trace.record(token_events(long), decode="tok{}".format)
    assert len(one) == 96
    assert len(json.dumps(Race([one, two]).lanes)) < 300_000


def test_the_finish_stands_where_no_script_runs(canvases: Trace, tokens: Trace) -> None:
    html = Race([canvases, tokens]).still_html()
    assert "&lt;10&gt;" in html and "23 tokens kept" in html and "<script" not in html


def test_wrong_races_are_refused(canvases: Trace) -> None:
    other = replace(canvases, prompt_ids=canvases.prompt_ids[1:])
    with pytest.raises(DgemmaError, match="different prompts"):
        Race([canvases, other])
    with pytest.raises(DgemmaError, match="at least one"):
        Race([])
    assert list(Race([canvases, canvases]).traces) == ["diffusion 1", "diffusion 2"]
